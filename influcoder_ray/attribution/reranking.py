"""Exact re-ranking: the search finds candidates, their gradients decide which of them comes first.

Shapes: Q queries, K candidates of each, C candidates of all queries, M pairs, D sketch width.
"""

import numpy as np
import numpy.typing as npt

from influcoder_ray.attribution.cosine import Vectors, check_vectors, cosines

# Numbers of one side that are multiplied at a time, in float64.
_NUMBERS = 1 << 22


def exact_scores(
    queries: Vectors,
    candidates: Vectors,
    of_query: npt.NDArray[np.int64],
    of_candidate: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """Exact influence (M,) float32 of pairs alone: the cosines of their sketches.

    Not a product of all with all: of Q x C pairs a re-ranking asks for Q x K. A pair's bits depend on its
    two sketches alone (`attribution.cosine`), so that one content under two ids has one score.

    Args:
        queries: (Q, D) sketches, of any length.
        candidates: (C, D) likewise.
        of_query: (M,) each pair's row of `queries`.
        of_candidate: (M,) each pair's row of `candidates`.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    check_vectors("query sketches", queries)
    check_vectors("candidate sketches", candidates, queries.shape[1])
    scores = np.empty(len(of_query), dtype=np.float32)
    step = max(1, _NUMBERS // queries.shape[1])
    for start in range(0, len(of_query), step):
        some = slice(start, start + step)
        left, right = queries[of_query[some]], candidates[of_candidate[some]]
        scores[some] = cosines(left.astype(np.float32), right.astype(np.float32))
    return scores


def exact_order(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The places of each query's candidates in their new order, best first.

    Args:
        scores: (Q, K) exact influence of candidates that stand in the search's order; NaN where there is
            none.

    Returns:
        (Q, K) places by falling influence, equal ones in the search's order. Those without exact
        influence stand behind all others, in the search's order: nothing says that they are better.
    """
    keys = np.where(np.isnan(scores), np.inf, -scores)
    return np.asarray(np.argsort(keys, axis=1, kind="stable"), dtype=np.int64)
