"""The influence of every example on a whole set of queries at once.

Shapes: N examples, Q queries, d embedding width.
"""

import numpy as np
import numpy.typing as npt

from influcoder_ray.attribution.cosine import (
    BLOCK_ROWS,
    Vectors,
    blocks,
    check_vectors,
    nearest_float32,
    norms,
    ordered_dot,
)


def group_scores(
    query_vectors: Vectors, vectors: Vectors, *, block_rows: int = BLOCK_ROWS
) -> npt.NDArray[np.float32]:
    """Mean cosine of each example with the queries: the mean unit query vector, dot the unit vector.

    An example's score depends on its own vector and the queries alone: neither the shard nor the block
    in which it lies changes a bit of it. A zero vector scores 0.

    Args:
        query_vectors: (Q, d) float16 or float32, Q at least 1.
        vectors: (N, d) float16 or float32.
        block_rows: rows converted at a time; changes memory and speed only.

    Returns:
        (N,) float32 in [-1, 1].

    Raises:
        ValueError: no queries; block_rows < 1; shapes or types that do not fit; a value that is not
            finite.
    """
    check_vectors("query vectors", query_vectors)
    check_vectors("vectors", vectors, query_vectors.shape[1])
    centre = mean_direction(query_vectors)
    scores = np.empty(len(vectors), dtype=np.float32)
    for start, block in blocks("vectors", vectors, block_rows):
        wide = block.astype(np.float64)
        lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
        lengths[lengths == 0] = 1
        scores[start : start + len(block)] = settled(wide @ centre[0] / lengths, block, centre)
    return scores


def mean_direction(query_vectors: Vectors) -> npt.NDArray[np.float64]:
    """(1, d) the mean of the unit vectors of (Q, d) queries.

    Raises:
        ValueError: no queries, or a value that is not finite.
    """
    if len(query_vectors) == 0:
        raise ValueError("query vectors are empty; the mean over queries needs at least 1")
    centre = np.zeros((1, query_vectors.shape[1]))
    for _, queries in blocks("query vectors", query_vectors, BLOCK_ROWS):
        # One query at a time, so that the order of the sum is that of the queries.
        for query, length in zip(queries.astype(np.float64), norms(queries), strict=True):
            centre += query / (length or 1.0)
    return centre / len(query_vectors)


def settled(
    means: npt.NDArray[np.float64], vectors: npt.NDArray[np.floating], centre: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """(N,) mean cosines as `ordered_dot` would have them, out of float64 ones of any order of summation.

    Args:
        means: (N,) float64.
        vectors: (N, d) float16 or float32.
        centre: (1, d) `mean_direction`.
    """
    scores, doubtful = nearest_float32(means, vectors.shape[1], float(np.sqrt(np.square(centre).sum())))
    if len(doubtful):
        some = vectors[doubtful]
        lengths = norms(some)
        lengths[lengths == 0] = 1
        scores[doubtful] = ordered_dot(some, centre) / lengths
    return scores
