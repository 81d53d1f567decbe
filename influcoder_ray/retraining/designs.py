"""On which examples of a pool the model is fine-tuned, with which seed.

Shapes: P pool examples, Q queries.

A design is named by what it is, never by its place in a list: with more seeds or more subsets the designs
that were there stay the same, and so do their fine-tunes. Which examples it takes is a pure function of the
scores, the run's seed and the examples' contents.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from influcoder_ray.retraining.specs import ValidateSpec

Kind = Literal["before", "whole", "select", "remove", "subset"]
RANDOM = "random"


@dataclass(frozen=True)
class Design:
    """One fine-tune.

    Attributes:
        kind: "before" (no step is taken), "whole" (on all of the pool), "select" (on the share that scores
            highest), "remove" (on all but that share) or "subset" (on a random part).
        by: of "select" and "remove" the method whose scores decide, or "random"; else empty.
        draw: which random part; with the same number it is the same part.
        seed: of the adapter's first weights and of the order of examples.
    """

    kind: Kind
    by: str = ""
    draw: int = 0
    seed: int = 0

    @property
    def part(self) -> str:
        """The name of what is trained on, whatever the seed."""
        numbered = self.kind == "subset" or self.by == RANDOM
        return "-".join(filter(None, (self.kind, self.by, str(self.draw) if numbered else "")))

    @property
    def name(self) -> str:
        """The name of the fine-tune."""
        return self.part if self.kind == "before" else f"{self.part}-seed{self.seed}"


def all_designs(spec: ValidateSpec, methods: Sequence[str], first_seed: int) -> list[Design]:
    """Every fine-tune that the settings ask for.

    Args:
        methods: whose scores select and remove; random parts of the same size stand beside them, for each
            seed others.
        first_seed: the run's; the further ones follow it.
    """
    seeds = [first_seed + number for number in range(spec.seeds)]
    found = [Design("before")]
    found += [Design("whole", seed=seed) for seed in seeds]
    kinds: tuple[Kind, ...] = ("select", "remove")
    for kind in kinds:
        found += [Design(kind, by, seed=seed) for by in methods for seed in seeds]
        found += [Design(kind, RANDOM, number, seed) for number, seed in enumerate(seeds)]
    found += [
        Design("subset", draw=draw, seed=first_seed + number)
        for draw in range(spec.subsets)
        for number in range(spec.subset_seeds)
    ]
    return found


def members(
    design: Design,
    spec: ValidateSpec,
    contents: Sequence[str],
    merits: Mapping[str, npt.NDArray[np.float64]],
    seed: int,
) -> list[int]:
    """The rows of the pool (P,) that a design trains on, rising.

    Args:
        contents: (P,) content hashes, all different.
        merits: (P,) by method: how much each example is expected to help, as `merit` gives it.
        seed: of random parts; the run's, whatever the design's own.

    Raises:
        KeyError: there are no merits of the design's method.
    """
    count = len(contents)
    if design.kind == "before":
        return []
    if design.kind == "whole":
        return list(range(count))
    if design.kind == "subset":
        return sorted(_at_random(contents, "subset", design.draw, seed)[: part_size(spec.alpha, count)])
    if design.by == RANDOM:
        first = _at_random(contents, design.kind, design.draw, seed)
    else:
        worth = merits[design.by]
        first = sorted(range(count), key=lambda row: (-worth[row], contents[row]))
    taken = part_size(spec.share, count)
    return sorted(first[:taken] if design.kind == "select" else first[taken:])


def merit(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """How much each pool example (P,) is expected to help queries: its mean score over them.

    Args:
        scores: (Q, P), higher = more influence.

    The mean, since the loss to be lowered is the queries' mean, and influences add up.
    """
    return np.asarray(scores, dtype=np.float64).mean(axis=0)


def part_size(share: float, count: int) -> int:
    """How many examples a share of `count` is: at least one, and not all."""
    return min(count - 1, max(1, round(share * count)))


def _at_random(contents: Sequence[str], kind: str, draw: int, seed: int) -> list[int]:
    """Rows in a random order that depends on nothing but contents, seed and names."""

    def key(row: int) -> bytes:
        return hashlib.sha256("\x1f".join([str(seed), kind, str(draw), contents[row]]).encode()).digest()

    return sorted(range(len(contents)), key=key)
