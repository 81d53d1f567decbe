"""Ridge regression from sums over rows, which may lie on any number of workers and be left out by fold.

Shapes: F features, d coordinates, n rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

# Two a decade. Features are standardised, so the same penalties suit every encoder.
PENALTIES = tuple(10 ** (exponent / 2) for exponent in range(-1, 6))


@dataclass(frozen=True)
class Sums:
    """Sums over rows of features x and coordinates y, in float64.

    Attributes:
        n: () rows; x: (F,); y: (d,); xx: (F, F); xy: (F, d); yy: () squares of all coordinates.
    """

    n: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @staticmethod
    def of(features: Tensor, coordinates: Tensor) -> "Sums":
        """Of rows of features (n, F) and coordinates (n, d)."""
        x, y = features.double(), coordinates.double()
        n = torch.tensor(float(len(x)), dtype=torch.float64, device=x.device)
        return Sums(n, x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.square().sum())

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.n, self.x, self.y, self.xx, self.xy, self.yy)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(a + b for a, b in zip(self.parts, other.parts, strict=True)))


def solve(sums: Sums, penalty: float) -> tuple[Tensor, Tensor]:
    """The weights (F, d) and bias (d,), float64, of least squared error plus the penalty times |weights|^2.

    Source: Hoerl and Kennard (1970), ridge regression; the bias carries no penalty.
    """
    mean_x, mean_y = sums.x / sums.n, sums.y / sums.n
    within = sums.xx - sums.n * torch.outer(mean_x, mean_x)
    across = sums.xy - sums.n * torch.outer(mean_x, mean_y)
    within.diagonal().add_(penalty)
    weights = torch.cholesky_solve(across, torch.linalg.cholesky(within))
    return weights, mean_y - mean_x @ weights


def squared_error(sums: Sums, weights: Tensor, bias: Tensor) -> float:
    """The sum of squared errors, over all rows and coordinates, of a prediction x weights + bias."""
    fit = (weights * (sums.xx @ weights)).sum() + sums.n * bias.square().sum()
    cross = (weights * sums.xy).sum() + (bias * sums.y).sum() - (bias * (sums.x @ weights)).sum()
    return float(sums.yy + fit - 2 * cross)


def best_penalty(folds: Sequence[Sums]) -> float:
    """The one of `PENALTIES` with the least error on each fold of weights fitted to the others."""
    rest = [total(folds, without=number) for number in range(len(folds))]
    errors = [
        sum(squared_error(held, *solve(others, p)) for held, others in zip(folds, rest, strict=True))
        for p in PENALTIES
    ]
    return PENALTIES[errors.index(min(errors))]


def total(folds: Sequence[Sums], *, without: int | None = None) -> Sums:
    """The sums over all folds, or over all but one."""
    return reduce(add, (sums for number, sums in enumerate(folds) if number != without))
