"""The most and the least influential examples of a corpus for one query, from its embeddings.

Shapes: N examples of the corpus, d embedding width.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from influcoder_ray.attribution.distribution import percentile_of_rank
from influcoder_ray.attribution.scan import Scan
from influcoder_ray.attribution.topk import Ranking, merge
from influcoder_ray.config import PipelineSettings
from influcoder_ray.explain.found import Extremes, Found
from influcoder_ray.stages import embed
from influcoder_ray.tables.state import CommittedFile
from influcoder_ray.tables.vectors import read_vectors

# Shards that are read and searched at once: reading waits for a disk or a network, searching does not.
_THREADS = 4


Columns = dict[tuple[str, int], tuple[str, float]]


def search(
    settings: PipelineSettings,
    vector: npt.NDArray[np.float32],
    *,
    most: int,
    least: int = 0,
    column: str = "embedding",
) -> Extremes:
    """Search a run's embeddings, shard by shard; no more than a few shards are in memory at once.

    Ranks are exact over the whole corpus: equal scores by id, as `attribution.topk` has it.

    Args:
        vector: (d,) of the query; it is rounded to float16, as the corpus's are.
        most, least: how many examples to find at either end, at least 1 of them.
        column: the embeddings' column with the vectors that are searched.

    Raises:
        ValueError: most and least are both below 1; the vector has another width or is not finite.
    """
    wanted = max(most, least)
    row = vector.astype(np.float16)
    # Turned round, the least influential examples are the most influential ones.
    both = np.stack([row, -row])
    best: Ranking | None = None
    held: Columns = {}
    for ranking, columns in _shards(settings, both, wanted, column):
        best = ranking if best is None else merge([best, ranking], wanted)
        held |= columns
        held = {place: held[place] for place in _places(best)}
    if best is None:
        return Extremes([], [], 0)
    top = [_found(best, 0, place, place + 1, best.examples, held) for place in range(_kept(best, most))]
    bottom = [
        _found(best, 1, place, best.examples - place, best.examples, held)
        for place in range(_kept(best, least))
    ]
    return Extremes(top, bottom[::-1], best.examples)


def _shards(
    settings: PipelineSettings, vectors: npt.NDArray[np.float16], wanted: int, column: str
) -> Iterator[tuple[Ranking, Columns]]:
    """Each shard's ranking for each of the vectors, with the source and familiarity of what it holds."""
    record = embed.state(settings.root)
    scan = Scan(vectors, wanted)

    def rank(file: CommittedFile) -> tuple[Ranking, Columns]:
        place = record.root / file.path
        with place.open() as stream:
            table = pq.ParquetFile(stream).read(columns=["example_id", "source", "familiarity"])
        ids = table["example_id"].to_numpy()
        ranking = scan.rank(read_vectors(place, column=column), ids.__getitem__, shard=file.path)
        rows = sorted({row for _, row in _places(ranking)})
        some = table.select(["source", "familiarity"]).take(rows).to_pylist()
        return ranking, {
            (file.path, row): (cells["source"], cells["familiarity"])
            for row, cells in zip(rows, some, strict=True)
        }

    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(rank, record.files(embed.CORPUS))


def _places(ranking: Ranking) -> Iterator[tuple[str, int]]:
    return zip(ranking.shards.reshape(-1).tolist(), ranking.rows.reshape(-1).tolist(), strict=True)


def _kept(ranking: Ranking, wanted: int) -> int:
    return min(wanted, ranking.scores.shape[1])


def _found(ranking: Ranking, query: int, place: int, rank: int, rows: int, held: Columns) -> Found:
    source, familiarity = held[ranking.shards[query, place], int(ranking.rows[query, place])]
    score = float(ranking.scores[query, place])
    return Found(
        rank=rank,
        example_id=str(ranking.ids[query, place]),
        # Zero has a sign, which nobody wants to see.
        score=(-score if query else score) + 0.0,
        percentile=percentile_of_rank(rank, rows),
        source=source,
        familiarity=familiarity,
    )
