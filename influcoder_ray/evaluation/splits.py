"""Whether the splits share content: an agreement measured on what was trained on proves nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def audit_splits(contents: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Count the contents that lie in more than one split.

    Content that is repeated inside one split is no leak and is not counted; queries and pool must be
    disjoint too, so every name in `contents` is compared with every other.

    Args:
        contents: the content hashes of each split by its name, such as "pool/train".

    Returns:
        "disjoint" (bool), "shared_contents" (distinct hashes found in two splits or more) and "sizes"
        (the examples of each split, repeats included).
    """
    splits_holding = Counter(content for hashes in contents.values() for content in set(hashes))
    shared = sum(count > 1 for count in splits_holding.values())
    return {
        "disjoint": shared == 0,
        "shared_contents": shared,
        "sizes": {name: len(hashes) for name, hashes in contents.items()},
    }
