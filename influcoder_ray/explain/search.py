"""The most and the least influential examples of a corpus for one query, from its embeddings.

Shapes: N examples of the corpus, d embedding width.
"""

import numpy as np
import numpy.typing as npt

from influcoder_ray.attribution.distribution import percentile_of_rank
from influcoder_ray.attribution.scan import Scan
from influcoder_ray.attribution.topk import Ids
from influcoder_ray.config import PipelineSettings
from influcoder_ray.explain.corpus import Cells, Corpus, Numbers
from influcoder_ray.explain.found import Extremes, Found

# Shards that are read and searched at once: reading waits for a disk or a network, searching does not.
_THREADS = 4


def search(
    settings: PipelineSettings,
    vector: npt.NDArray[np.float32],
    *,
    most: int,
    least: int = 0,
    column: str = "embedding",
) -> Extremes:
    """Search a run's embeddings, a few shards at once; no more than some of their row groups are in memory.

    Ranks are exact over the whole corpus: equal scores by id, as `attribution.topk` has it. What is not a
    vector is read of the examples that are found, and of those that only their ids tell apart.

    Args:
        vector: (d,) of the query; it is rounded to float16, as the corpus's are.
        most, least: how many examples to find at either end, at least 1 of them.
        column: the embeddings' column with the vectors that are searched.

    Raises:
        ValueError: most and least are both below 1; the vector has another width or is not finite.
    """
    corpus = Corpus(settings)
    row = vector.astype(np.float16)

    known: Cells = {}

    def ids_of(numbers: Numbers) -> Ids:
        # What is asked for last holds the answer, of which nothing is then read twice.
        known.clear()
        known.update(corpus.cells(numbers))
        return np.array([known[number]["example_id"] for number in numbers.tolist()], dtype=object)

    # Turned round, the least influential examples are the most influential ones.
    scan = Scan(np.stack([row, -row]), max(most, least))
    best = scan.rank_together(corpus.shards(column), ids_of, at_once=_THREADS, turned=np.array([False, True]))
    kept = best.rows.shape[1]

    def found(query: int, place: int, rank: int) -> Found:
        score = float(best.scores[query, place])
        return Found(
            rank=rank,
            # Zero has a sign, which nobody wants to see.
            score=(-score if query else score) + 0.0,
            percentile=percentile_of_rank(rank, len(corpus)),
            **known[int(best.rows[query, place])],
        )

    top = [found(0, place, place + 1) for place in range(min(most, kept))]
    bottom = [found(1, place, len(corpus) - place) for place in range(min(least, kept))]
    return Extremes(top, bottom[::-1], len(corpus))
