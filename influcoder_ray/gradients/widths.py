"""What a sketch's width does to cosines, and which width is enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from torch import Tensor

from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.teacher import Teacher

Array = npt.NDArray[np.float64]

WIDTHS = (2_048, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072, 262_144)

# A width is enough when both hold, there and at every greater width. The first is what rankings need; two
# draws of the adapter itself agree to some .95, so that .99 is not what limits them. Of a few pairs it can
# be met by luck: the mean error, in units of the exact cosines' standard deviation, is steadier. (Where
# cosines and errors are normal, a mean error of .1 goes with a rank agreement of .992.)
ENOUGH_AGREEMENT = 0.99
ENOUGH_ERROR_SHARE = 0.1
# Seeds of sketches that figures are taken over: one alone is a lucky or an unlucky one.
DRAWS = 3

_COLUMNS = 1 << 20


@dataclass(frozen=True)
class WidthError:
    """What sketches of one width do to the cosines of all pairs of examples, over some seeds.

    Attributes:
        width: D.
        mean_error: mean absolute difference of sketched and exact cosines.
        worst_error: the largest one.
        predicted_error: the mean of `predicted_error` over these pairs.
        rank_agreement: Spearman's rho of sketched and exact cosines over the pairs, mean of the seeds.
    """

    width: int
    mean_error: float
    worst_error: float
    predicted_error: float
    rank_agreement: float


def predicted_error(cosines: npt.ArrayLike, width: int) -> Array:
    """The mean absolute error to expect of the cosine of two CountSketches of width D.

    For unit vectors x, y at cosine c, e(x, y) = <Sx, Sy> - <x, y> sums x_i y_j s_i s_j over i != j with
    h(i) = h(j). Two entries meet with probability 1 / D, so over random h and s its mean is zero and,
    where no few entries hold most of the length, var e(x, y) = (1 + c^2) / D (Charikar, Chen and
    Farach-Colton, 2002; the variance: Weinberger et al., arXiv 0902.2206, lemma 2), and by the same sum
    var e(x, x) = 2 / D, cov(e(x, x), e(x, y)) = 2 c / D and cov(e(x, x), e(y, y)) = 2 c^2 / D.
    A cosine divides by both sketches' lengths: to first order its error is
    e(x, y) - c (e(x, x) + e(y, y)) / 2, whose variance is (1 + c^2 + c^2 (1 + c^2) - 4 c^2) / D =
    (1 - c^2)^2 / D. It is a sum of many small terms, so close to normal, and the mean absolute value of a
    normal error is sqrt(2 / pi) standard deviations.

    Args:
        cosines: c, of any shape.

    Returns:
        Of the same shape.
    """
    c = np.asarray(cosines, dtype=np.float64)
    return np.asarray(math.sqrt(2 / math.pi / width) * (1 - c**2))


def width_errors(draws: Sequence[Sequence[npt.NDArray[np.float32]]], exact: Array) -> list[WidthError]:
    """What sketches do to exact cosines (N (N - 1) / 2,) of the same examples.

    Args:
        draws: for each width the sketches (N, D) of several seeds.
    """
    return [_width_error(sketches, exact) for sketches in draws]


def advised_width(widths: Sequence[WidthError], spread: float) -> int | None:
    """The smallest width that is enough, as every greater one among `widths` is; None if there is none.

    Args:
        spread: standard deviation of the exact cosines over the pairs.
    """
    advised = None
    for found in sorted(widths, key=lambda w: -w.width):
        if found.rank_agreement < ENOUGH_AGREEMENT or found.mean_error > ENOUGH_ERROR_SHARE * spread:
            break
        advised = found.width
    return advised


def sketches_of_widths(
    teacher: Teacher, tokens: Sequence[Tokens], widths: Sequence[int], seed: int
) -> list[list[npt.NDArray[np.float32]]]:
    """For each width the sketches (N, D) of several seeds, `seed` the first.

    They are made as a run makes them, and in one pass over the examples.
    """
    parts = [CountSketch(width, seed + draw) for width in widths for draw in range(DRAWS)]
    sketches = teacher.sketch(tokens, _SideBySide(parts)).sketches
    apart = np.split(sketches, np.cumsum([part.width for part in parts])[:-1], axis=1)
    return [apart[first : first + DRAWS] for first in range(0, len(apart), DRAWS)]


def products(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> Array:
    """Dot products (N, M) of the rows of (N, G) and (M, G), summed in float64.

    A block of columns at a time, so that no second copy of the rows is made.
    """
    total = np.zeros((len(left), len(right)))
    for start in range(0, left.shape[1], _COLUMNS):
        block = slice(start, start + _COLUMNS)
        total += left[:, block].astype(np.float64) @ right[:, block].astype(np.float64).T
    return total


def pair_cosines(rows: npt.NDArray[np.float32]) -> Array:
    """Cosines (N (N - 1) / 2,) of all unordered pairs of rows (N, G), none of them zero."""
    gram = products(rows, rows)
    norms = np.sqrt(np.diagonal(gram))
    first, second = np.triu_indices(len(rows), k=1)
    return np.asarray(np.clip(gram[first, second] / (norms[first] * norms[second]), -1.0, 1.0))


def _width_error(draws: Sequence[npt.NDArray[np.float32]], exact: Array) -> WidthError:
    sketched = [pair_cosines(sketches) for sketches in draws]
    errors = np.abs(np.stack(sketched) - exact)
    width = draws[0].shape[1]
    return WidthError(
        width=width,
        mean_error=float(errors.mean()),
        worst_error=float(errors.max()),
        predicted_error=float(predicted_error(exact, width).mean()),
        rank_agreement=float(np.mean([_rho(cosines, exact) for cosines in sketched])),
    )


def _rho(sketched: Array, exact: Array) -> float:
    # Where all pairs tie there is no order to keep.
    if np.ptp(sketched) == 0 or np.ptp(exact) == 0:
        return 0.0
    return float(spearmanr(sketched, exact).statistic)


class _SideBySide(CountSketch):
    """Several sketches in the columns of one."""

    def __init__(self, parts: Sequence[CountSketch]) -> None:
        super().__init__(sum(part.width for part in parts), parts[0].seed)
        self._parts = parts

    def add(self, sketches: Tensor, gradients: Tensor, name: str) -> None:
        columns = sketches.split([part.width for part in self._parts], dim=1)
        for part, target in zip(self._parts, columns, strict=True):
            # In rows of its own, as a sketch that is made by itself has them.
            own = torch.zeros(target.shape, device=target.device)
            part.add(own, gradients, name)
            target += own
