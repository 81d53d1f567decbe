"""What exact re-ranking gains on the test split, and what it costs in gradients.

Shapes: Q queries, P pool examples, K top k. Matrices are (Q, P), higher = more influence.

The N examples of each query with the highest predicted influence are given their gradients. A gradient serves
every query, so each query ranks the candidates of all queries by exact influence; the rest of the pool
follows in its predicted order. N is a share of the pool, so that a curve of small test pools says what to
expect of large corpora.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from influcoder_ray.evaluation.agreement import mean_and_std

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


def reranking_curve(
    predicted: npt.ArrayLike,
    exact: npt.ArrayLike,
    *,
    recall_at: Sequence[int],
    resamples: int,
    seed: int,
    shares: Sequence[float] = SHARES,
) -> list[dict[str, Any]]:
    """Recall, overlap at the top and cost for each share of the pool that is re-ranked.

    Two measures for each k, both 1 for the exact order, and from N = k on never lower for a larger share:

    - recall_at_<k>: the share of the exact top k that is in the re-ranked top k, as `agreement.recall_at_k`.
    - overlap_at_<k>: the mean over depths d = 1..k of the share of the exact top d that is in the re-ranked
      top d: average overlap, which is one minus the intersection metric of Fagin, Kumar and Sivakumar,
      "Comparing top k lists" (SIAM J. Discrete Math. 17, 2003). An error at the first place counts at
      every depth, one at the last place once.

    And own_recall_at_<k>: the recall, were each query to rank its own candidates alone. It depends on N, and
    not on how many queries share their gradients.

    The cost is `gradient_evaluations`: the different candidates of all queries, each sketched once. Where
    candidates of queries meet, as in a small pool, that is much less than `candidates` (N) a query.

    Args:
        predicted: (Q, P) predicted influence.
        exact: (Q, P) exact influence.
        recall_at: each k, capped at P.
        resamples: bootstrap draws of the queries behind each spread, as in `agreement.summarise`.
        seed: of these draws.
        shares: of the pool, each from 0 to 1; N is the share of P rounded up.

    Returns:
        For each share {"share", "candidates", "gradient_evaluations", "pool_share_evaluated",
        "recall_at_<k>": {"mean", "std"}, "overlap_at_<k>": the same, "own_recall_at_<k>": the same}.

    Raises:
        ValueError: shapes differ, are not two-dimensional or are empty; a value is not finite; a k or
            resamples too small; a share out of range.
    """
    orders = [_order(name, matrix) for name, matrix in (("predicted", predicted), ("exact", exact))]
    if orders[0].shape != orders[1].shape:
        raise ValueError(f"predicted has shape {orders[0].shape} and exact {orders[1].shape}; must be equal")
    if resamples < 2:
        raise ValueError(f"resamples is {resamples}; a standard deviation needs at least 2")
    for least, values, name in ((1, recall_at, "k"), (0, shares, "share")):
        if any(value < least for value in values):
            raise ValueError(f"a {name} is {min(values)}; at least {least} is needed")
    if any(share > 1 for share in shares):
        raise ValueError(f"a share is {max(shares)}; at most 1 is possible")
    found, truth = orders
    queries, pool = found.shape
    exact_ranks, predicted_ranks = _ranks(truth), _ranks(found)
    generator = np.random.default_rng(seed)
    draws = [generator.integers(queries, size=queries) for _ in range(resamples)]
    curve = []
    for share in shares:
        candidates = candidates_of(share, pool)
        own = predicted_ranks < candidates
        evaluated = own.any(axis=0)
        shared_ranks = _reranked(exact_ranks, predicted_ranks, np.broadcast_to(evaluated, own.shape))
        own_ranks = _reranked(exact_ranks, predicted_ranks, own)
        measures: dict[str, Array] = {}
        for k in recall_at:
            overlap = _overlap(exact_ranks, shared_ranks, k)
            measures[f"recall_at_{k}"] = overlap[:, -1]
            measures[f"overlap_at_{k}"] = overlap.mean(axis=1)
            measures[f"own_recall_at_{k}"] = _overlap(exact_ranks, own_ranks, k)[:, -1]
        curve.append(
            {
                "share": float(share),
                "candidates": candidates,
                "gradient_evaluations": int(evaluated.sum()),
                "pool_share_evaluated": float(evaluated.mean()),
                **{
                    name: mean_and_std(float(values.mean()), [float(values[drawn].mean()) for drawn in draws])
                    for name, values in measures.items()
                },
            }
        )
    return curve


def candidates_of(share: float, pool: int) -> int:
    """N, the candidates of each query: a share of the pool, rounded up."""
    # 0.07 * 100 is a little more than 7.
    return math.ceil(round(share * pool, 6))


def _reranked(exact_ranks: Places, predicted_ranks: Places, evaluated: npt.NDArray[np.bool_]) -> Places:
    """(Q, P) ranks from 0: what is evaluated first, by exact influence, then the rest as predicted."""
    keys = np.where(evaluated, exact_ranks, evaluated.shape[1] + predicted_ranks)
    return _ranks(np.argsort(keys, axis=1))


def _overlap(exact_ranks: Places, ranks: Places, k: int) -> Array:
    """(Q, K): the share of the exact top d that is in the top d by `ranks`, for d = 1..K, K at most P."""
    queries, pool = ranks.shape
    depths = min(k, pool)
    # The depth, less one, from which on an example is in both tops.
    entry = np.maximum(exact_ranks, ranks)
    row, column = np.nonzero(entry < depths)
    entered = np.zeros((queries, depths))
    np.add.at(entered, (row, entry[row, column]), 1)
    return np.asarray(entered.cumsum(axis=1) / np.arange(1, depths + 1), dtype=np.float64)


def _ranks(order: Places) -> Places:
    """(Q, P) each position's rank, from 0, in an order of positions (Q, P)."""
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(order.shape[1])[None], axis=1)
    return ranks


def _order(name: str, matrix: npt.ArrayLike) -> Places:
    """(Q, P) pool positions by falling value; equal ones by position, as in `agreement`."""
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} has shape {values.shape}; queries x pool is needed, neither of them 0")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds {np.count_nonzero(~np.isfinite(values))} values that are not finite")
    return np.asarray(np.argsort(-values, axis=1, kind="stable"), dtype=np.int64)
