"""How well predicted influence orders the pool as exact influence does: rank agreement and recall.

Shapes: Q queries, P pool examples, K top k, R bootstrap resamples. Both matrices are (Q, P), higher =
more influence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Array = npt.NDArray[np.float64]
Summary = dict[str, dict[str, float]]


@dataclass(frozen=True, eq=False)
class Resampled:
    """Every measure of one prediction: on all test queries, and on each bootstrap resample of them.

    `estimates` are on all queries, `draws` (R,) on the resamples, both by the measure's name. Two
    predictions on the same `bootstrap_rows` are paired: draw r of both rests on the same queries.
    """

    estimates: dict[str, float]
    draws: dict[str, Array]

    def summary(self) -> Summary:
        """The estimate of each measure, and the standard deviation of its draws."""
        return {name: mean_and_std(self.estimates[name], draws) for name, draws in self.draws.items()}


def per_query_rho(predicted: npt.ArrayLike, exact: npt.ArrayLike) -> Array:
    """Spearman's rank correlation of each query's row over the pool, ties given their average rank.

    A row that is constant in either matrix orders nothing, so its rho is 0 by convention, never NaN.

    Args:
        predicted: (Q, P) predicted influence.
        exact: (Q, P) exact influence.

    Returns:
        (Q,) float64 in [-1, 1].

    Raises:
        ValueError: shapes differ, are not two-dimensional or are empty; a value is not finite.

    Source: Spearman (1904); "per-query" agreement of Influcoder, arXiv 2606.13668.
    """
    return _rows_rho(*_matrices(predicted, exact))


def aggregated_rho(predicted: npt.ArrayLike, exact: npt.ArrayLike) -> float:
    """Spearman's rho of the pool's mean influence over all queries; 0 where either mean is constant.

    Args, errors: as `per_query_rho`.

    Source: "aggregated" agreement of Influcoder, arXiv 2606.13668.
    """
    return _mean_rho(*_matrices(predicted, exact))


def recall_at_k(predicted: npt.ArrayLike, exact: npt.ArrayLike, k: int) -> Array:
    """Share of each query's exact top k that is in its predicted top k.

    k is capped at P. Of equal scores the one at the lower pool position comes first, in both matrices.

    Returns:
        (Q,) float64 in [0, 1].

    Raises:
        ValueError: as `per_query_rho`, and for k < 1.
    """
    return _rows_recall(*_matrices(predicted, exact), k)


def point_estimates(
    predicted: npt.ArrayLike, exact: npt.ArrayLike, recall_at: Sequence[int]
) -> dict[str, float]:
    """Every measure of one (Q, P) prediction: aggregated_rho, per_query_rho and recall_at_<k> for each k.

    The per-query measures are means over the queries.
    """
    pair = _matrices(predicted, exact)
    means = {name: float(values.mean()) for name, values in _per_query(*pair, recall_at).items()}
    return {"aggregated_rho": _mean_rho(*pair), **means}


def summarise(
    predicted: npt.ArrayLike, exact: npt.ArrayLike, *, recall_at: Sequence[int], resamples: int, seed: int
) -> Summary:
    """Every measure with its bootstrap standard deviation over the test queries.

    The queries are drawn with replacement `resamples` times; the pool stays as it is. The deviation
    therefore says how far another draw of queries would move the figure, not another draw of the pool
    nor another training run.

    Returns:
        {"aggregated_rho": {"mean", "std"}, "per_query_rho": {...}, "recall_at_<k>": {...}}, where mean
        is the point estimate on all queries and std has resamples - 1 degrees of freedom.

    Raises:
        ValueError: as `recall_at_k`, and for fewer than 2 resamples.

    Source: Efron (1979), the nonparametric bootstrap.
    """
    queries = len(_matrices(predicted, exact)[1])
    rows = bootstrap_rows(queries, resamples, seed)
    return resample(predicted, exact, recall_at=recall_at, rows=rows).summary()


def bootstrap_rows(queries: int, resamples: int, seed: int) -> npt.NDArray[np.int64]:
    """Which queries each bootstrap resample holds: (R, Q) rows, drawn with replacement.

    Raises:
        ValueError: fewer than 2 resamples.

    Source: Efron (1979), the nonparametric bootstrap.
    """
    if resamples < 2:
        raise ValueError(f"resamples is {resamples}; a standard deviation needs at least 2")
    return np.random.default_rng(seed).integers(queries, size=(resamples, queries))


def resample(
    predicted: npt.ArrayLike,
    exact: npt.ArrayLike,
    *,
    recall_at: Sequence[int],
    rows: npt.NDArray[np.int64],
) -> Resampled:
    """Every measure of one (Q, P) prediction on all queries, and on each of the (R, Q) resamples in `rows`.

    Raises:
        ValueError: as `recall_at_k`.
    """
    pair = _matrices(predicted, exact)
    per_query = _per_query(*pair, recall_at)
    estimates = {name: float(values.mean()) for name, values in per_query.items()}
    aggregated = np.array([_mean_rho(pair[0][drawn], pair[1][drawn]) for drawn in rows], dtype=np.float64)
    draws = {name: np.asarray(values[rows].mean(axis=1)) for name, values in per_query.items()}
    return Resampled(
        {"aggregated_rho": _mean_rho(*pair), **estimates}, {"aggregated_rho": aggregated, **draws}
    )


def mean_and_std(mean: float, draws: Sequence[float] | Array) -> dict[str, float]:
    """The two figures of one measure: its mean, and the sample standard deviation of its draws."""
    return {"mean": mean, "std": float(np.std(draws, ddof=1))}


def _matrices(predicted: npt.ArrayLike, exact: npt.ArrayLike) -> tuple[Array, Array]:
    pair = np.asarray(predicted, dtype=np.float64), np.asarray(exact, dtype=np.float64)
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"predicted has shape {pair[0].shape} and exact {pair[1].shape}; they must be equal")
    for name, matrix in zip(("predicted", "exact"), pair, strict=True):
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise ValueError(f"{name} has shape {matrix.shape}; queries x pool is needed, neither of them 0")
        bad = np.argwhere(~np.isfinite(matrix))
        if len(bad):
            row, column = bad[0]
            raise ValueError(
                f"{name} holds {len(bad)} values that are not finite, the first at query {row}, pool {column}"
            )
    return pair


def _per_query(predicted: Array, exact: Array, recall_at: Sequence[int]) -> dict[str, Array]:
    recalls = {f"recall_at_{k}": _rows_recall(predicted, exact, k) for k in recall_at}
    return {"per_query_rho": _rows_rho(predicted, exact), **recalls}


def _rows_rho(predicted: Array, exact: Array) -> Array:
    left, right = _centred_ranks(predicted), _centred_ranks(exact)
    # Ranks are multiples of a half, so a constant row's spread is exactly zero.
    spread = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    rho = np.zeros(len(left))
    np.divide((left * right).sum(axis=1), spread, out=rho, where=spread > 0)
    return np.clip(rho, -1.0, 1.0)


def _mean_rho(predicted: Array, exact: Array) -> float:
    # A reduction over axis 0 adds every column in the same order, so that equal columns (duplicates in
    # the pool) keep equal means; a matrix product may not, and would then break their tie by rounding.
    means = (matrix.mean(axis=0, keepdims=True) for matrix in (predicted, exact))
    return float(_rows_rho(*means)[0])


def _centred_ranks(matrix: Array) -> Array:
    return np.asarray(rankdata(matrix, axis=1), dtype=np.float64) - (matrix.shape[1] + 1) / 2


def _rows_recall(predicted: Array, exact: Array, k: int) -> Array:
    if k < 1:
        raise ValueError(f"k is {k}; recall needs a k of at least 1")
    shared = _top(predicted, k) & _top(exact, k)
    return np.asarray(shared.sum(axis=1) / min(k, predicted.shape[1]), dtype=np.float64)


def _top(matrix: Array, k: int) -> npt.NDArray[np.bool_]:
    chosen = np.argsort(-matrix, axis=1, kind="stable")[:, :k]
    mask = np.zeros(matrix.shape, dtype=np.bool_)
    np.put_along_axis(mask, chosen, True, axis=1)
    return mask
