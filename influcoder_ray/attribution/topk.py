"""The exact top k of a corpus that streams past in shards, for every query at once.

Shapes: N examples of a shard, Q queries, K top k, d embedding width.

What is promised: the scores and ids of `merge` over the shards of a corpus are those of one full sort
of that corpus by (score descending, example_id ascending), to the last bit, whatever the shards, their
order, the block size and the machine. Two things carry the promise. A score is `cosine.cosines`, whose
bits depend on its two vectors alone. And the fast float32 product only chooses candidates: everything
within its worst-case rounding error of the k-th place is scored again by `cosines` before it is cut.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from influcoder_ray.attribution.cosine import BLOCK_ROWS, Vectors, check_vectors

Ids = npt.NDArray[np.object_]


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


class Best:
    """The best examples so far of each query, while a shard is looked at part by part.

    Args:
        queries: how many there are.
        k: how many examples are kept for each.
        ids_of: the ids (M,) of rows (M,) of the shard; asked for at the end, and where many scores are equal.
        turned: (Q,) whether a query is another one turned round, whose best are that one's last: equal scores
            then go by falling id. None are if None.
    """

    def __init__(
        self,
        queries: int,
        k: int,
        ids_of: Callable[[npt.NDArray[np.int64]], Ids],
        turned: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        _check_k(k)
        self._rising = np.ones(queries, np.int64) if turned is None else np.where(turned, -1, 1)
        self._queries, self._k, self._ids_of = queries, k, ids_of
        self._pairs = _Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        self._waiting: list[_Pairs] = []
        self.bar = np.full(queries, -np.inf, dtype=np.float32)
        """(Q,) the k-th best score, or one below it; -inf where there were fewer rows than k."""

    def add(
        self, query: npt.NDArray[np.int64], row: npt.NDArray[np.int64], score: npt.NDArray[np.float32]
    ) -> None:
        """Take in pairs, (M,) each: all that may be among the best, once each."""
        self._waiting.append(_Pairs(query, row, score))
        # Sorting costs all that is held, so it waits until half as many have come as there are places. Until
        # then the bar is lower than it could be, which lets more through and loses none.
        if 2 * sum(len(pairs.query) for pairs in self._waiting) >= self._queries * self._k:
            self._cut()

    def ranking(self, shard: str, examples: int) -> Ranking:
        """The best of all that was taken in, of a shard of so many examples."""
        self._cut()
        pairs = self._pairs
        ids = self._ids_of(pairs.row)
        names = np.full(len(ids), shard, dtype=object)
        places = _Places(pairs.query, pairs.score, ids, names, pairs.row)
        return _cut([places], self._k, examples, self._rising)

    def _cut(self) -> None:
        """Drop what is below the k-th best; equal scores stay, unless they are too many."""
        parts = [self._pairs, *self._waiting]
        self._waiting = []
        query = np.concatenate([part.query for part in parts])
        row = np.concatenate([part.row for part in parts])
        score = np.concatenate([part.score for part in parts])
        self.bar = kth_best(query, score, self._queries, self._k)
        kept = np.flatnonzero(score >= self.bar[query])
        if len(kept) > 2 * self._queries * self._k:
            rising = self._rising[query[kept]]
            ids = rising * _order_of(self._ids_of(row[kept]))
            kept = kept[np.lexsort((rising * row[kept], ids, -score[kept], query[kept]))]
            sizes = np.bincount(query[kept], minlength=self._queries)
            places = np.arange(len(kept)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            kept = kept[places < self._k]
        self._pairs = _Pairs(query[kept], row[kept], score[kept])


def kth_best(
    query: npt.NDArray[np.int64], score: npt.NDArray[np.float32], queries: int, k: int
) -> npt.NDArray[np.float32]:
    """(Q,) the k-th highest score among the pairs (M,) of each query; -inf where there are fewer."""
    # One number for a pair, which sorts by query and falling score: sorting numbers is ten times as fast as
    # sorting pairs. A float's bits rise with it, those of a negative one once they are turned round.
    bits = score.view(np.int32).astype(np.int64)
    rising = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = np.sort((query << 32) + (0x7FFFFFFF - rising))
    sizes = np.bincount(query, minlength=queries)
    firsts = np.cumsum(sizes) - sizes
    full = sizes >= k
    rising = 0x7FFFFFFF - (keys[firsts[full] + k - 1] & 0xFFFFFFFF)
    found = np.full(queries, -np.inf, dtype=np.float32)
    found[full] = np.where(rising < 0, rising ^ 0x7FFFFFFF, rising).astype(np.int32).view(np.float32)
    return found


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Pairs of a query and a row of the shard in one flat list: each field has one entry a pair."""

    query: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    score: npt.NDArray[np.float32]


def rank_shard(
    query_vectors: Vectors,
    vectors: Vectors,
    example_ids: Sequence[str] | Ids,
    k: int,
    *,
    shard: str = "",
    block_rows: int = BLOCK_ROWS,
) -> Ranking:
    """Rank the examples of one shard for each query by cosine, descending; equal scores by id, ascending.

    Memory beyond the inputs is a few products of queries and 1,024 rows, and the candidates. Those are few
    unless a large part of the shard lies within (4 d + 32) x 2^-24 (1e-4 at d = 384) of the k-th score,
    as when an encoder has collapsed; then more rows are scored twice, and the answer is still exact.

    Args:
        query_vectors: (Q, d) float16 or float32.
        vectors: (N, d) float16 or float32, of any length; a zero vector scores 0.
        example_ids: (N,) ids.
        k: how many to keep for each query, at least 1.
        shard: a name for this shard, carried along to every place of the ranking.
        block_rows: rows after which the k-th score is looked at anew; changes speed, never the result.

    Raises:
        ValueError: k or block_rows < 1; shapes or types that do not fit; a value that is not finite.
    """
    # Ranking needs torch, which takes seconds to import; merging, and the command line, do not.
    from influcoder_ray.attribution.products import Asked, look

    check_vectors("query vectors", query_vectors)
    check_vectors("vectors", vectors, query_vectors.shape[1])
    if len(example_ids) != len(vectors):
        raise ValueError(f"{len(example_ids)} example ids for {len(vectors)} vectors; one each is needed")
    if block_rows < 1:
        raise ValueError(f"block_rows is {block_rows}; at least 1 is needed")
    asked = Asked(query_vectors)
    best = Best(
        len(asked),
        k,
        lambda rows: np.array([str(example_ids[row]) for row in rows.tolist()], dtype=object),
    )
    for start in range(0, len(vectors), block_rows):
        seen = look(asked, vectors[start : start + block_rows], k, best.bar, first=start)
        best.add(seen.query, seen.row + start, seen.score)
    return best.ranking(shard, len(vectors))


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
    rising = np.ones(queries.pop(), np.int64)
    return _cut([_places(ranking) for ranking in rankings], k, examples, rising)


def merge_each(rankings: Iterable[Ranking], k: int, *, places: int = 1 << 17) -> Ranking:
    """As `merge`, of rankings that come one after the other and are too many to be held.

    Args:
        places: how many of theirs are held at once, some hundred bytes each.
    """
    held: list[Ranking] = []
    for ranking in rankings:
        held.append(ranking)
        if sum(each.scores.size for each in held) >= max(places, 2 * held[0].scores.size):
            held = [merge(held, k)]
    return merge(held, k)


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


def _cut(parts: list[_Places], k: int, examples: int, rising: npt.NDArray[np.int64]) -> Ranking:
    """The best k of each query; equal scores by id times `rising` (Q,), which is 1 or -1."""
    query = np.concatenate([part.query for part in parts])
    score = np.concatenate([part.score for part in parts])
    ids = np.concatenate([part.id for part in parts])
    shard = np.concatenate([part.shard for part in parts])
    row = np.concatenate([part.row for part in parts])
    order = np.lexsort((-score, query))
    equal = (np.diff(query[order]) == 0) & (np.diff(score[order]) == 0)
    if equal.any():
        # Only among equal scores do ids decide, and texts take long to sort. Shard and row are in the key so
        # that even an id that occurs twice has one order.
        tied = order[np.append(equal, False) | np.append(False, equal)]
        by_id, by_shard = np.zeros((2, len(query)), np.int64)
        by_id[tied], by_shard[tied] = _order_of(ids[tied]), _order_of(shard[tied])
        sign = rising[query]
        order = np.lexsort((sign * row, sign * by_shard, sign * by_id, -score, query))
    sizes = np.bincount(query, minlength=len(rising))
    firsts = np.cumsum(sizes) - sizes
    kept = order[firsts[:, None] + np.arange(min(k, examples))]
    return Ranking(score[kept], ids[kept], shard[kept], row[kept], examples)


def _order_of(texts: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    """Each text's place among the distinct ones, in the order of their code points."""
    places = {text: place for place, text in enumerate(sorted(set(texts.tolist())))}
    return np.array([places[text] for text in texts.tolist()], dtype=np.int64)


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; at least 1 is needed")
