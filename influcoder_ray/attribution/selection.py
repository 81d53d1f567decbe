"""Which rows are taken: the best so many of a corpus that is never held, in order, within a budget.

Shapes: N examples, C candidates, G rankings.

The best n of a corpus are found from counts. Scores fall into 2^20 bins by the leading bits of their
float32 form, counts of shards add up, and the sum says from which bin on the best n lie. Only rows from
that bin on are ever sorted, by score and then by id, so the answer is that of one full sort.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_KEPT_BITS = 20
_CUT_BITS = 32 - _KEPT_BITS
BINS = 1 << _KEPT_BITS
_SIGN = np.uint32(1 << 31)


def score_bins(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The bin (N,) of each score: a higher score never lies in a lower bin.

    A bin is a 2,048th of a power of two wide, so that one near .3 holds scores within .00012.
    """
    # Adding 0 makes the two zeros one.
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)
    keys = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return (keys >> np.uint32(_CUT_BITS)).astype(np.int64)


def lowest_in_bin(place: int) -> float:
    """The lowest score that a bin can hold."""
    key = np.uint32(place << _CUT_BITS)
    bits = np.array([key ^ _SIGN if key & _SIGN else ~key], dtype=np.uint32)
    return float(bits.view(np.float32)[0])


def bar_of(counts: npt.NDArray[np.int64], wanted: int) -> float:
    """A score from which on there are at least `wanted` rows, and at most one bin more; -inf for all.

    Args:
        counts: (BINS,) rows in each bin.
    """
    from_above = np.cumsum(counts[::-1])
    if from_above[-1] <= wanted:
        return -np.inf
    return lowest_in_bin(BINS - 1 - int(np.searchsorted(from_above, wanted)))


def rows_of_share(share: float, rows: int) -> int:
    """How many of so many rows a share is: rounded down, at least one."""
    # .29 x 100 is a little less than 29.
    return max(1, math.floor(round(share * rows, 6)))


def best_first(rows: pa.Table) -> pa.Table:
    """Rows by `score` descending, then `example_id` ascending."""
    order = pc.sort_indices(rows, sort_keys=[("score", "descending"), ("example_id", "ascending")])
    return rows.take(order)


@dataclass
class Budget:
    """How much may be taken; one of `rows` and `tokens`, or neither for all there is.

    `tokens_of` has the tokens (C,) of each candidate.
    """

    rows: int | None = None
    tokens: int | None = None
    tokens_of: Sequence[int] = ()
    taken_rows: int = 0
    taken_tokens: int = 0

    def fits(self, row: int) -> bool:
        if self.rows is not None:
            return self.taken_rows < self.rows
        return self.tokens is None or self.taken_tokens + self.tokens_of[row] <= self.tokens

    def take(self, row: int) -> None:
        self.taken_rows += 1
        if self.tokens is not None:
            self.taken_tokens += self.tokens_of[row]

    @property
    def is_spent(self) -> bool:
        """Whether nothing more could be taken, whatever came."""
        if self.rows is not None:
            return self.taken_rows >= self.rows
        return self.tokens is not None and self.taken_tokens >= self.tokens


@dataclass
class Copies:
    """Of each content, and of each cluster of near-duplicates, at most so many rows are taken.

    Attributes:
        limit: how many; 0 for any number.
        kinds: the contents (C,), the clusters (C,): whatever a row may share with others.
    """

    limit: int
    kinds: Sequence[Sequence[object]] = ()
    _seen: dict[tuple[int, object], int] = field(default_factory=dict)

    def admit(self, row: int) -> bool:
        keys = [(place, kind[row]) for place, kind in enumerate(self.kinds)]
        return not self.limit or all(self._seen.get(key, 0) < self.limit for key in keys)

    def take(self, row: int) -> None:
        for place, kind in enumerate(self.kinds):
            key = place, kind[row]
            self._seen[key] = self._seen.get(key, 0) + 1


@dataclass(frozen=True)
class Taken:
    """Rows in the order in which they were taken, the ranking that each came from, and what ended it.

    The budget was spent; all rows there are were looked at; or a ranking ran out whose further rows are not
    known, so that the answer is not final.
    """

    rows: list[int]
    rankings: list[int]
    ended_by: Literal["budget", "rows", "unknown rows"]


def take_in_turns(
    rankings: Sequence[Sequence[int]],
    budget: Budget,
    admit: Callable[[int], bool],
    taking: Callable[[int], None],
    *,
    whole: bool,
) -> Taken:
    """Each ranking in turn gives its best row that is left, until the budget is spent.

    One ranking alone is taken from its top. With one for each query this is the round robin of Ivison
    et al., "Large-Scale Data Selection for Instruction Tuning" (arXiv 2503.01807).

    Args:
        rankings: rows of each, best first; a row may stand in several.
        admit: whether a row may be taken; once refused, it is passed over for good.
        taking: told of each row that is taken.
        whole: whether the rankings hold all that there is.
    """
    rows: list[int] = []
    origins: list[int] = []
    taken: set[int] = set()
    places = [0] * len(rankings)
    live = list(range(len(rankings)))
    while live:
        for turn in list(live):
            if budget.is_spent:
                return Taken(rows, origins, "budget")
            ranking, place = rankings[turn], places[turn]
            while place < len(ranking) and (ranking[place] in taken or not admit(ranking[place])):
                place += 1
            places[turn] = place
            if place == len(ranking):
                if not whole:
                    return Taken(rows, origins, "unknown rows")
                live.remove(turn)
                continue
            row = ranking[place]
            if not budget.fits(row):
                return Taken(rows, origins, "budget")
            budget.take(row)
            taking(row)
            taken.add(row)
            rows.append(row)
            origins.append(turn)
    return Taken(rows, origins, "budget" if budget.is_spent else "rows")


def take_in_order(order: Iterable[int], budget: Budget, *, whole: bool) -> Taken:
    """Rows one after another until the budget is spent; of an iterator no more is asked than that takes.

    Args:
        whole: whether the order holds all that there is.
    """
    rows: list[int] = []
    for row in order:
        if not budget.fits(row):
            return Taken(rows, [0] * len(rows), "budget")
        budget.take(row)
        rows.append(row)
        if budget.is_spent:
            return Taken(rows, [0] * len(rows), "budget")
    return Taken(rows, [0] * len(rows), "rows" if whole else "unknown rows")
