"""Where a score stands in its corpus: percentiles, by exact rank or from a histogram that adds up."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 4096
_HALF = BINS // 2
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Counts of scores in 4,096 equal bins over [-1, 1]; those of a corpus are the sum of its shards'.

    Bin i holds -1 + i / 2048 <= score < -1 + (i + 1) / 2048; the last holds 1 as well. A score
    is placed by an exact product with 2,048, so no rounding moves one across an edge.
    """

    counts: npt.NDArray[np.int64]
    """(4096,) scores in each bin."""

    def __post_init__(self) -> None:
        if self.counts.shape != (BINS,) or self.counts.dtype != np.int64 or (self.counts < 0).any():
            raise ValueError(f"a score histogram needs {BINS} int64 counts of at least 0")

    @classmethod
    def of(cls, scores: npt.ArrayLike) -> "ScoreHistogram":
        """Count scores of any shape; an empty array gives the histogram that adds nothing.

        Raises:
            ValueError: a score that is not finite, or outside [-1, 1] by more than 1e-6 of rounding.
        """
        values = np.asarray(scores, dtype=np.float64).ravel()
        bad = ~(np.abs(values) <= 1 + _ROUNDING)
        if bad.any():
            raise ValueError(f"score {values[bad][0]} is no cosine; it must be finite and in [-1, 1]")
        places = np.clip(np.floor(values * _HALF) + _HALF, 0, BINS - 1).astype(np.int64)
        return cls(np.bincount(places, minlength=BINS).astype(np.int64))

    def __add__(self, other: "ScoreHistogram") -> "ScoreHistogram":
        return ScoreHistogram(self.counts + other.counts)

    @property
    def total(self) -> int:
        """How many scores were counted."""
        return int(self.counts.sum())

    def percentile_below(self, score: float) -> float:
        """Per cent of the counted scores that lie below a score, in [0, 100].

        Inside a bin the scores are taken as evenly spread, so the figure is off by at most the share of
        the one bin that holds the score. It never falls as the score rises.

        Raises:
            ValueError: nothing was counted, or the score is no number.
        """
        if self.total == 0:
            raise ValueError("the histogram is empty; a percentile needs at least one score")
        if np.isnan(score):
            raise ValueError("the score is not a number; it has no percentile")
        place = min(max(float(score), -1.0), 1.0) * _HALF
        whole = math.floor(place)
        below = float(self.counts[: whole + _HALF].sum())
        if whole < _HALF:
            below += (place - whole) * float(self.counts[whole + _HALF])
        return 100.0 * below / self.total

    def coarse(self, bins: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The same counts in fewer equal bins, for a figure: (bins,) counts and (bins + 1,) edges.

        Raises:
            ValueError: bins that do not divide 4,096 evenly.
        """
        if bins < 1 or BINS % bins:
            raise ValueError(f"bins is {bins}; a divisor of {BINS} is needed, such as 64")
        counts = self.counts.reshape(bins, BINS // bins).sum(axis=1)
        return counts, np.linspace(-1.0, 1.0, bins + 1)


def percentile_of_rank(rank: int, n: int) -> float:
    """Per cent of the other examples that rank below this one: 100 (n - rank) / (n - 1).

    Args:
        rank: 1 for the best of n.
        n: how many examples were ranked; the only one of n = 1 stands at 100.

    Raises:
        ValueError: a rank that is not among 1 to n.
    """
    if not 1 <= rank <= n:
        raise ValueError(f"rank is {rank} of {n}; it must lie between 1 and {n}")
    return 100.0 if n == 1 else 100.0 * (n - rank) / (n - 1)
