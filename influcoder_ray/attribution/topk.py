"""The exact top k of a corpus that streams past in shards, for every query at once.

Shapes: N examples of a shard, Q queries, K top k, d embedding width.

What is promised: the scores and ids of `merge` over the shards of a corpus are those of one full sort
of that corpus by (score descending, example_id ascending), to the last bit, whatever the shards, their
order, the block size and the machine. Two things carry the promise. A score is `cosine.cosines`, whose
bits depend on its two vectors alone. And the fast float32 product only chooses candidates: everything
within its worst-case rounding error of the k-th place is scored again by `cosines` before it is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from influcoder_ray.attribution.cosine import BLOCK_ROWS, Vectors, blocks, check_vectors, cosines, unit_rows

_PAIRS = 8192


@dataclass(frozen=True, eq=False)
class Ranking:
    """The best examples of each query, best first; K is the k asked for, or the corpus if that is smaller.

    `shards` and `rows` say where each example was read, so that columns which were not needed for the
    ranking (its source) can be joined afterwards.
    """

    scores: npt.NDArray[np.float32]
    """(Q, K) cosines in [-1, 1], falling along each row."""
    ids: npt.NDArray[np.object_]
    """(Q, K) example ids, rising where scores are equal."""
    shards: npt.NDArray[np.object_]
    """(Q, K) names of the shards as given to `rank_shard`."""
    rows: npt.NDArray[np.int64]
    """(Q, K) row positions within the shard."""
    examples: int
    """How many examples were ranked: the n of `distribution.percentile_of_rank`."""


def rank_shard(
    query_vectors: Vectors,
    vectors: Vectors,
    example_ids: Sequence[str] | npt.NDArray[np.object_],
    k: int,
    *,
    shard: str = "",
    block_rows: int = BLOCK_ROWS,
) -> Ranking:
    """Rank the examples of one shard for each query by cosine, descending; equal scores by id, ascending.

    Memory beyond the inputs is about block_rows x (2 d + Q) x 4 bytes, and the candidates. Those are few
    unless a large part of the shard lies within (4 d + 32) x 2^-24 (1e-4 at d = 384) of the k-th score,
    as when an encoder has collapsed; then more rows are scored twice, and the answer is still exact.

    Args:
        query_vectors: (Q, d) float16 or float32.
        vectors: (N, d) float16 or float32, of any length; a zero vector scores 0.
        example_ids: (N,) ids.
        k: how many to keep for each query, at least 1.
        shard: a name for this shard, carried along to every place of the ranking.
        block_rows: rows converted and multiplied at a time; changes memory and speed, never the result.

    Raises:
        ValueError: k or block_rows < 1; shapes or types that do not fit; a value that is not finite.
    """
    _check_k(k)
    check_vectors("query vectors", query_vectors)
    check_vectors("vectors", vectors, query_vectors.shape[1])
    if len(example_ids) != len(vectors):
        raise ValueError(f"{len(example_ids)} example ids for {len(vectors)} vectors; one each is needed")
    queries = _whole("query vectors", query_vectors)
    directions = unit_rows(queries)
    error = _product_error(queries.shape[1])
    best = _empty(len(queries))
    waiting: list[_Places] = []
    for start, block in blocks("vectors", vectors, block_rows):
        rough = directions @ unit_rows(block).T
        of_query, of_row = np.nonzero(rough >= _bar(rough, best, k, error)[:, None])
        found = _Places(
            of_query,
            _scores(queries, block, of_query, of_row),
            np.array([str(example_ids[start + row]) for row in of_row.tolist()], dtype=object),
            np.full(len(of_row), shard, dtype=object),
            of_row + start,
        )
        waiting.append(found)
        # Sorting costs the whole ranking, so it waits until as many candidates have come as there are
        # places. Until then the bar is lower than it could be, which lets more through and loses none.
        if sum(len(part.query) for part in waiting) >= len(queries) * k:
            best = _cut([_places(best), *waiting], len(queries), k, start + len(block))
            waiting = []
    return _cut([_places(best), *waiting], len(queries), k, len(vectors))


def merge(rankings: Sequence[Ranking], k: int) -> Ranking:
    """The top k of the shards' examples together.

    Associative and commutative: any tree over any order of the shards ends in the same ranking.

    Raises:
        ValueError: no rankings; k < 1; rankings of different numbers of queries; a ranking that was cut
            below k, whose missing places could not be known.
    """
    _check_k(k)
    if not rankings:
        raise ValueError("no rankings to merge; at least one is needed")
    queries = {len(ranking.scores) for ranking in rankings}
    if len(queries) > 1:
        raise ValueError(f"rankings of {sorted(queries)} queries; all must be of the same queries")
    for ranking in rankings:
        kept = ranking.scores.shape[1]
        if kept < min(k, ranking.examples):
            raise ValueError(
                f"a ranking keeps {kept} of its {ranking.examples} examples; the top {k} needs at least {k}"
            )
    examples = sum(ranking.examples for ranking in rankings)
    return _cut([_places(ranking) for ranking in rankings], queries.pop(), k, examples)


@dataclass(frozen=True, eq=False)
class _Places:
    """Places of many queries in one flat list, in no order: each field has one entry a place."""

    query: npt.NDArray[np.int64]
    score: npt.NDArray[np.float32]
    id: npt.NDArray[np.object_]
    shard: npt.NDArray[np.object_]
    row: npt.NDArray[np.int64]


def _places(ranking: Ranking) -> _Places:
    queries, kept = ranking.scores.shape
    return _Places(
        np.repeat(np.arange(queries), kept),
        ranking.scores.ravel(),
        ranking.ids.ravel(),
        ranking.shards.ravel(),
        ranking.rows.ravel(),
    )


def _cut(parts: list[_Places], queries: int, k: int, examples: int) -> Ranking:
    query = np.concatenate([part.query for part in parts])
    score = np.concatenate([part.score for part in parts])
    ids = np.concatenate([part.id for part in parts])
    shard = np.concatenate([part.shard for part in parts])
    row = np.concatenate([part.row for part in parts])
    # Shard and row are in the key so that even an id that occurs twice has one order.
    order = np.lexsort((row, _order_of(shard), _order_of(ids), -score, query))
    sizes = np.bincount(query, minlength=queries)
    firsts = np.cumsum(sizes) - sizes
    kept = order[firsts[:, None] + np.arange(min(k, examples))]
    return Ranking(score[kept], ids[kept], shard[kept], row[kept], examples)


def _order_of(texts: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    """Each text's place among the distinct ones, in the order of their code points."""
    places = {text: place for place, text in enumerate(sorted(set(texts.tolist())))}
    return np.array([places[text] for text in texts.tolist()], dtype=np.int64)


def _empty(queries: int) -> Ranking:
    texts = np.empty((queries, 0), dtype=object)
    return Ranking(np.empty((queries, 0), np.float32), texts, texts, np.empty((queries, 0), np.int64), 0)


def _bar(rough: npt.NDArray[np.float32], best: Ranking, k: int, error: float) -> npt.NDArray[np.float32]:
    """(Q,) rough score below which no row of this (Q, rows) block can be among the k best seen so far."""
    queries, rows = rough.shape
    bar = np.full(queries, -np.inf, dtype=np.float32)
    if best.scores.shape[1] == k:
        bar = best.scores[:, -1] - np.float32(error)
    if rows > k and np.count_nonzero(rough >= bar[:, None]) > queries * k:
        # k rows of this block score at least its k-th rough score less one error; a row that is to stand
        # beside them can look worse by one error more.
        kth = np.partition(rough, rows - k, axis=1)[:, rows - k]
        bar = np.maximum(bar, kth - np.float32(2 * error))
    return bar


def _product_error(width: int) -> float:
    """Bound on |rough product - score|: Higham (2002), eq. 3.5, with unit roundoff u = 2^-24.

    A dot product of unit vectors is off by at most about d u; scaling a row to unit length adds at most
    (d / 2 + 4) u, a query as much, and the score's own rounding u: 2 d u and a few u. The sum is doubled,
    to cover the terms of second order and the rounding of the bar itself.
    """
    return (4 * width + 32) * 2.0**-24


def _scores(
    queries: npt.NDArray[np.float32],
    block: npt.NDArray[np.float32],
    of_query: npt.NDArray[np.int64],
    of_row: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    scores = np.empty(len(of_query), dtype=np.float32)
    for start in range(0, len(of_query), _PAIRS):
        some = slice(start, start + _PAIRS)
        scores[some] = cosines(queries[of_query[some]], block[of_row[some]])
    return scores


def _whole(name: str, vectors: Vectors) -> npt.NDArray[np.float32]:
    parts = [block for _, block in blocks(name, vectors, BLOCK_ROWS)]
    return np.concatenate(parts) if parts else np.empty(vectors.shape, np.float32)


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is needed")
