"""What the parts of a text add to its example's influence."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """What the characters [start, end) of a text add to its example's influence on a query.

    `contribution` is in the unit of the score (or any other: only proportions are shown); above 0 it raises
    the influence, below 0 it lowers it. Spans are in order and do not overlap; those that say nothing may be
    left out.

    Raises:
        ValueError: the span is empty or begins before the text, or its contribution is not finite.
    """

    start: int
    end: int
    contribution: float

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"[{self.start}, {self.end}) is no span of characters")
        if not math.isfinite(self.contribution):
            raise ValueError(f"contribution is {self.contribution}, which is not finite")


def on_shown(spans: Sequence[Span], origins: Sequence[int]) -> list[Span]:
    """Spans of a text, moved to where its characters stand in the cleaned text.

    Args:
        origins: for each character of the cleaned text its place in the whole one, rising.

    Returns:
        Those of which a character is left.
    """
    moved = ((bisect_left(origins, s.start), bisect_left(origins, s.end), s.contribution) for s in spans)
    return [Span(start, end, contribution) for start, end, contribution in moved if start < end]
