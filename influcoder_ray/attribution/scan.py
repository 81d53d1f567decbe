"""One pass over the vectors of a shard, by several threads: its best examples, its influence as a whole.

Shapes: N examples of the shard, Q queries, K top k, d embedding width.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from influcoder_ray.ahead import in_order
from influcoder_ray.attribution.cosine import Vectors, check_vectors
from influcoder_ray.attribution.distribution import ScoreHistogram
from influcoder_ray.attribution.group import mean_direction
from influcoder_ray.attribution.products import CPU, Asked, Looked, look
from influcoder_ray.attribution.topk import Best, Ids, Ranking


@dataclass(frozen=True, eq=False)
class Scanned:
    """What one pass has found."""

    ranking: Ranking
    group: npt.NDArray[np.float32]
    """(N,) mean cosine of each example with the queries, as `group.group_scores` has it."""
    histogram: ScoreHistogram
    """Of all Q x N cosines, in float32."""


class Scan:
    """Holds the queries of a search and passes over shards for all of them at once.

    Ranking and group scores are the same to the last bit however a shard is cut into blocks, and whatever
    the threads; the histogram counts float32 products, so that a score on the edge of a bin may be counted
    in the next one on another machine.

    Args:
        query_vectors: (Q, d) float16 or float32, Q at least 1.
        k: how many examples are kept for each query, at least 1.
        threads: that compute; each looks at a block of its own. It goes best where torch's arithmetic keeps
            to the thread that asks for it (`torch.set_num_threads(1)`).
        device: that multiplies; a GPU wants blocks of many rows.

    Raises:
        ValueError: no queries; k < 1; shapes or types that do not fit; a value that is not finite.
    """

    def __init__(
        self, query_vectors: Vectors, k: int, *, threads: int = 1, device: torch.device = CPU
    ) -> None:
        check_vectors("query vectors", query_vectors)
        self._asked = Asked(query_vectors, device)
        self._centre = mean_direction(query_vectors)
        self._k = k
        self._threads = threads

    def shard(
        self,
        blocks: Iterable[Vectors],
        ids_of: Callable[[npt.NDArray[np.int64]], Ids],
        *,
        shard: str = "",
        report: Callable[[int], None] = lambda rows: None,
    ) -> Scanned:
        """Pass over a shard once; a few of its blocks are held at a time.

        Args:
            blocks: its vectors in order, some thousand rows (n, d) at a time, read while others are computed.
            ids_of: the ids of rows of the shard, asked for where they decide or are kept.
            shard: its name in the ranking.
            report: takes the number of rows done since it was last called.

        Raises:
            ValueError: shapes or types that do not fit; a value that is not finite, by its row in the shard.
        """
        best = Best(len(self._asked), self._k, ids_of)
        histogram = ScoreHistogram.of([])
        groups = [np.empty(0, np.float32)]
        rows = 0
        for seen, first, count in self._looked(blocks, best, whole=True):
            histogram = histogram + seen.histogram
            groups.append(seen.group)
            rows = first + count
            report(count)
        return Scanned(best.ranking(shard, rows), np.concatenate(groups), histogram)

    def rank(
        self,
        blocks: Iterable[Vectors],
        ids_of: Callable[[npt.NDArray[np.int64]], Ids],
        *,
        shard: str = "",
    ) -> Ranking:
        """The ranking of a shard alone; as `shard` otherwise."""
        best = Best(len(self._asked), self._k, ids_of)
        rows = 0
        for _, first, count in self._looked(blocks, best, whole=False):
            rows = first + count
        return best.ranking(shard, rows)

    def rank_together(
        self,
        shards: Iterable[tuple[int, Iterable[Vectors]]],
        ids_of: Callable[[npt.NDArray[np.int64]], Ids],
        *,
        at_once: int,
        turned: npt.NDArray[np.bool_] | None = None,
    ) -> Ranking:
        """The ranking of several shards as of one: what one has raised the bar to spares the others' rows.

        Args:
            shards: the row that each begins with among the rows of all, and its blocks.
            ids_of: as for `shard`, of rows among those of all.
            at_once: how many shards are passed over at the same time, a thread each: while one waits for
                its blocks another computes.
            turned: (Q,) as for `topk.Best`.

        Raises:
            ValueError: as `shard`.
        """
        best = Best(len(self._asked), self._k, ids_of, turned)
        adding = threading.Lock()

        def passed(shard: tuple[int, Iterable[Vectors]]) -> int:
            before, blocks = shard
            rows = 0
            for first, vectors in _numbered(blocks):
                check_vectors("vectors", vectors, self._asked.width)
                seen = look(self._asked, vectors, self._k, best.bar.copy(), first=first)
                with adding:
                    best.add(seen.query, seen.row + first + before, seen.score)
                rows = first + len(vectors)
            return rows

        return best.ranking("", sum(in_order(passed, shards, threads=at_once, ahead=at_once)))

    def _looked(
        self, blocks: Iterable[Vectors], best: Best, *, whole: bool
    ) -> Iterator[tuple[Looked, int, int]]:
        """What was seen in each block, its first row and its rows, once its pairs are among the best's."""

        def looked(block: tuple[int, Vectors]) -> tuple[Looked, int, int]:
            first, vectors = block
            check_vectors("vectors", vectors, self._asked.width)
            # The bar may rise meanwhile: a lower one lets more through and loses none.
            seen = look(
                self._asked,
                vectors,
                self._k,
                best.bar.copy(),
                centre=self._centre if whole else None,
                counted=whole,
                first=first,
            )
            return seen, first, len(vectors)

        numbered = _numbered(blocks)
        for found in in_order(looked, numbered, threads=self._threads, ahead=self._threads + 1):
            seen, first, _ = found
            best.add(seen.query, seen.row + first, seen.score)
            yield found


def _numbered(blocks: Iterable[Vectors]) -> Iterator[tuple[int, Vectors]]:
    """Each block with the position of its first row."""
    first = 0
    for block in blocks:
        yield first, block
        first += len(block)
