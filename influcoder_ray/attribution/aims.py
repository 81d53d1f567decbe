"""Aims: the queries, or groups of queries, that a row's influence is counted towards.

Shapes: N examples, Q queries, G aims, d embedding width.

A group of queries becomes one aim, the mean of its members' unit vectors; the highest cosine with any of
the aims is then the score of LESS (Xia et al., arXiv 2402.04333, section 4.2), whose subtasks are the
groups. Ungrouped, each query is an aim.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from influcoder_ray.attribution.cosine import BLOCK_ROWS, Vectors, blocks, check_vectors, norms
from influcoder_ray.attribution.group import group_scores
from influcoder_ray.attribution.topk import rank_shard

By = Literal["mean", "max"]


def aim_vectors(query_vectors: Vectors, groups: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    """The direction (G, d) of each group: the mean of the unit vectors of its members.

    A query alone keeps its own vector, so that scores are those of `attributions` to the last bit.

    Args:
        query_vectors: (Q, d) float16 or float32.
        groups: the rows of each aim's members, at least one each.

    Raises:
        ValueError: a group without members; shapes or types that do not fit.
    """
    check_vectors("query vectors", query_vectors)
    wide = query_vectors.astype(np.float64)
    lengths = norms(wide)[:, None]
    units = wide / np.where(lengths > 0, lengths, 1.0)
    directions = np.zeros((len(groups), query_vectors.shape[1]))
    for place, members in enumerate(groups):
        if not len(members):
            raise ValueError(f"group {place} has no queries; at least 1 is needed")
        if len(members) == 1:
            directions[place] = wide[members[0]]
            continue
        # One at a time, so that the order of the sum is that of the members.
        for member in members:
            directions[place] += units[member]
        directions[place] /= len(members)
    return directions.astype(np.float32)


def nearest_aims(aims: Vectors, vectors: Vectors) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Each row's highest cosine with any aim (N,), and with which (N,); of equal ones the first.

    The bits of a score depend on the row and the aims alone: the fast product only says which aims come
    into question.

    Args:
        aims: (G, d) float16 or float32, G at least 1.
        vectors: (N, d) float16 or float32.

    Raises:
        ValueError: no aims; shapes or types that do not fit; a value that is not finite.
    """
    check_vectors("aims", aims)
    check_vectors("vectors", vectors, aims.shape[1])
    if len(aims) == 0:
        raise ValueError("aims are empty; at least 1 is needed")
    names = np.array([f"{place:09}" for place in range(len(aims))], dtype=object)
    scores = np.empty(len(vectors), dtype=np.float32)
    nearest = np.empty(len(vectors), dtype=np.int32)
    for start, block in blocks("vectors", vectors, BLOCK_ROWS):
        # The other way round: each row ranks the aims, of which the best one is wanted.
        best = rank_shard(block, aims, names, 1)
        scores[start : start + len(block)] = best.scores[:, 0]
        nearest[start : start + len(block)] = best.rows[:, 0]
    return scores, nearest


def influence(
    query_vectors: Vectors, aims: Vectors, vectors: Vectors, by: By
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """The influence (N,) of rows on queries as a whole, and the aim (N,) that each is nearest to.

    Args:
        query_vectors: (Q, d); their mean cosine with a row is its influence by "mean".
        aims: (G, d); the highest cosine with any of them is its influence by "max".
    """
    highest, nearest = nearest_aims(aims, vectors)
    return (group_scores(query_vectors, vectors) if by == "mean" else highest), nearest


def contrast(
    unwanted: npt.NDArray[np.float32], protected: npt.NDArray[np.float32], weight: float
) -> npt.NDArray[np.float32]:
    """Influence on unwanted answers less that on protected ones: u - w p, each (N,), rounded once."""
    difference = unwanted.astype(np.float64) - weight * protected.astype(np.float64)
    return difference.astype(np.float32)
