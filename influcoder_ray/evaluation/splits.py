"""Whether the splits share content: an agreement measured on what was trained on proves nothing."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


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


def near_duplicates(train: Iterable[str], test: Sequence[str]) -> int:
    """How many test texts equal a training text but for case, punctuation, white space and numbers.

    Such a pair is no shared content, and a template filled anew is often one; where there are many, the
    test asks little more than what training showed. A text without a word is like no other.

    Args:
        train: walked through once; of it nothing is held.
    """
    forms = Counter(form for form in map(_bare, test) if form)
    found = {form for form in map(_bare, train) if form in forms}
    return sum(forms[form] for form in found)


def _bare(text: str) -> str:
    """The words of a text in lower case, every number as 0."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = _NUMBER.sub("0", folded).translate(_IN_WORDS).split()
    # What is left of an emoji may be a mark alone.
    return " ".join(word for word in words if any(map(str.isalnum, word)))


class _InWords(dict[int, str]):
    """A table for `str.translate` that works out each character's place once: a blank where it is of no word.

    Vowels of many scripts are marks, which are part of a word though Python's `\\w` leaves them out.
    """

    def __missing__(self, code: int) -> str:
        character = chr(code)
        is_mark = unicodedata.category(character).startswith("M")
        self[code] = character if character.isalnum() or is_mark else " "
        return self[code]


_IN_WORDS = _InWords()
