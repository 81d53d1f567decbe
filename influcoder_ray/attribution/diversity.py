"""Rows that resemble each other: clusters of near-duplicates, and an order that avoids repeating itself.

Shapes: C candidates, d embedding width.

Every candidate is compared with many others, so the comparison has to be a matrix product, and its
outcome may not hang on who computes it. Unit vectors are therefore rounded to multiples of 2^-14: their
products are then whole numbers below 2^53, which float64 adds without rounding in any order. A cosine is
off by some .0001 at most and is the same on every machine.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from influcoder_ray.attribution.cosine import Vectors, check_vectors, norms

MOST_COMPARED = 200_000
"""Candidates that may be compared with each other: their products take C^2 d operations."""

_STEPS = 1 << 14
_BLOCK = 1024


def rounded_directions(vectors: Vectors) -> npt.NDArray[np.float64]:
    """(C, d) unit vectors in multiples of 2^-14; a zero vector stays one, and is like no other."""
    check_vectors("vectors", vectors)
    wide = vectors.astype(np.float64)
    lengths = norms(wide)[:, None]
    return np.rint(wide / np.where(lengths > 0, lengths, 1.0) * _STEPS) / _STEPS


def near_clusters(directions: npt.NDArray[np.float64], near: float) -> npt.NDArray[np.int64]:
    """The cluster (C,) of each candidate, named by its first member.

    In order, a candidate joins the earliest cluster whose first member has a cosine of at least `near`
    with it, and else begins one: so all of a cluster are near its best, not near each other.

    Args:
        directions: (C, d) of `rounded_directions`, best first.
    """
    clusters = np.arange(len(directions), dtype=np.int64)
    first: list[int] = []
    for start in range(0, len(directions), _BLOCK):
        block = directions[start : start + _BLOCK]
        joins = np.full(len(block), -1, dtype=np.int64)
        for begin in range(0, len(first), _BLOCK):
            leaders = first[begin : begin + _BLOCK]
            close = block @ directions[leaders].T >= near
            found = close.any(axis=1) & (joins < 0)
            joins[found] = np.array(leaders)[close.argmax(axis=1)[found]]
        within = block @ block.T >= near
        begun: list[int] = []
        for row in range(len(block)):
            if joins[row] < 0:
                joins[row] = next((start + other for other in begun if within[row, other]), start + row)
                if joins[row] == start + row:
                    begun.append(row)
        first.extend(start + row for row in begun)
        clusters[start : start + len(block)] = joins
    return clusters


def by_marginal_relevance(
    scores: npt.NDArray[np.float32], directions: npt.NDArray[np.float64], diversity: float
) -> Iterator[int]:
    """All candidates in the order of maximal marginal relevance, of equal ones the earlier first.

    The first is the one with the highest score; each next one has the highest (1 - t) score - t max cos,
    the maximum over all that came before (Carbonell and Goldstein, SIGIR 1998, doi 10.1145/290941.291025,
    with t = 1 - lambda).

    Args:
        scores: (C,).
        directions: (C, d) of `rounded_directions`.
        diversity: the weight t in [0, 1].
    """
    relevance = (1.0 - diversity) * scores.astype(np.float64)
    likeness = np.full(len(scores), -np.inf)
    left = np.ones(len(scores), dtype=bool)
    for turn in range(len(scores)):
        worth = relevance if turn == 0 else relevance - diversity * likeness
        best = int(np.argmax(np.where(left, worth, -np.inf)))
        left[best] = False
        yield best
        np.maximum(likeness, directions @ directions[best], out=likeness)
