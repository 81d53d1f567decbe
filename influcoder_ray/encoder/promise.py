"""Which examples a student expects to matter: those that many queries would look at.

Shapes: Q queries, R examples, d numbers in a vector.
"""

import numpy as np

# The share of the examples that a query would look at. Narrower shares choose nearly the same examples.
TOP_SHARE = 0.1
_QUERIES_AT_ONCE = 16


def most_promising(queries: np.ndarray, vectors: np.ndarray, count: int) -> np.ndarray:
    """The rows of the `count` examples that stand in the most queries' top tenth by predicted influence.

    By queries and not by the mean of their influence: examples that matter much to few kinds of query are to
    be learnt too, and a query whose influences are all large must not outweigh the others.

    Args:
        queries: (Q, d) unit vectors.
        vectors: (R, d) unit vectors of the examples, of any float type; no Q x R matrix is formed.
        count: at most R.

    Returns:
        (count,) rows in their order; of examples with as many queries the first.
    """
    top = max(1, round(TOP_SHARE * len(vectors)))
    wanted_by = np.zeros(len(vectors), dtype=np.int64)
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        scores = queries[start : start + _QUERIES_AT_ONCE] @ vectors.astype(np.float32).T
        bar = np.partition(scores, len(vectors) - top, axis=1)[:, len(vectors) - top]
        wanted_by += (scores >= bar[:, None]).sum(axis=0)
    return np.sort(np.argsort(-wanted_by, kind="stable")[:count])
