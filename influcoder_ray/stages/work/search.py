"""Search: the best examples of a shard of embeddings for each query."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.attribution.distribution import pair_histogram
from influcoder_ray.attribution.group import group_scores
from influcoder_ray.attribution.topk import Ranking, rank_shard
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import vector_matrix
from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.state import Output
from influcoder_ray.tables.units import Unit, read_rows


@dataclass(frozen=True)
class SearchTables:
    """The tables that a search writes for each unit."""

    group: str
    rankings: str
    histogram: str


class SearchWork:
    """Holds the queries' vectors and ranks units of embeddings for each of them.

    Args:
        queries: the files of the queries' embeddings.
        tables: what the results are called.
        top_k: how many examples are kept for each query.
        unfamiliar_below: the familiarity, in per cent, below which a row is counted as unfamiliar.
    """

    def __init__(
        self, queries: Sequence[DataFile], tables: SearchTables, top_k: int, unfamiliar_below: float
    ) -> None:
        self._queries = vector_matrix(query_rows(queries, ["example_id", "embedding"]))
        self._tables = tables
        self._top_k = top_k
        self._unfamiliar_below = unfamiliar_below

    def read(self, unit: Unit) -> pa.Table:
        return read_rows(unit)

    def process(self, unit: Unit, rows: pa.Table, report: Callable[[int], None]) -> Output:
        vectors = vector_matrix(rows)
        ids = rows["example_id"].to_numpy()
        ranking = rank_shard(self._queries, vectors, ids, self._top_k)
        group = group_scores(self._queries, vectors)
        sources, familiarity = rows["source"].to_numpy(), rows["familiarity"].to_numpy()
        return Output(
            {
                self._tables.group: pa.table(
                    {"example_id": ids, "source": sources, "score": group, "familiarity": familiarity},
                    schema=schemas.GROUP_INFLUENCE,
                ),
                self._tables.rankings: ranking_table(ranking, rows),
                self._tables.histogram: pa.table(
                    {"count": pair_histogram(self._queries, vectors).counts}, schema=schemas.HISTOGRAM
                ),
            },
            rows_in=rows.num_rows,
            rows_out=rows.num_rows,
            counters={"unfamiliar_rows": int((familiarity < self._unfamiliar_below).sum())},
        )


def query_rows(files: Sequence[DataFile], columns: Sequence[str]) -> pa.Table:
    """The named columns of the queries' embeddings, in order of id."""
    parts = []
    for file in files:
        with file.place.open() as stream:
            parts.append(pq.ParquetFile(stream).read(columns=list(columns)))
    return pa.concat_tables(parts).sort_by("example_id")


def ranking_table(ranking: Ranking, rows: pa.Table) -> pa.Table:
    """The best rows of a unit for each query, with their source and familiarity."""
    queries, kept = ranking.scores.shape
    found = rows.select(["source", "familiarity"]).take(pa.array(ranking.rows.reshape(-1)))
    return pa.table(
        {
            "query": np.repeat(np.arange(queries, dtype=np.int32), kept),
            "score": ranking.scores.reshape(-1),
            "example_id": ranking.ids.reshape(-1),
            "source": found["source"],
            "familiarity": found["familiarity"],
        },
        schema=schemas.RANKINGS,
    )
