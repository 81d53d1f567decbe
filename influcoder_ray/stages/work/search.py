"""Search: the best examples of a shard of embeddings for each query."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from influcoder_ray.attribution.scan import Scan
from influcoder_ray.attribution.topk import Ranking
from influcoder_ray.stages.work.device import own_device
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import vector_matrix
from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.rows import read_rows
from influcoder_ray.tables.state import Output
from influcoder_ray.tables.units import Unit
from influcoder_ray.tables.vectors import read_vectors


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
        threads: of the search's arithmetic.
        device: that multiplies; the GPU that Ray gave this worker if None, or the CPU.
    """

    def __init__(
        self,
        queries: Sequence[DataFile],
        tables: SearchTables,
        top_k: int,
        unfamiliar_below: float,
        threads: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or own_device()
        # The search has threads of its own, which would wait for each other's.
        torch.set_num_threads(1)
        vectors = vector_matrix(query_rows(queries, ["example_id", "embedding"]))
        self._scan = Scan(vectors, top_k, threads=threads, device=self.device)
        self._tables = tables
        self._unfamiliar_below = unfamiliar_below

    def read(self, unit: Unit) -> pa.Table:
        """All but the vectors, which are read while they are searched: a unit's would be a gigabyte."""
        return read_rows(unit, ["example_id", "source", "familiarity"])

    def process(self, unit: Unit, rows: pa.Table, report: Callable[[int], None]) -> Output:
        ids = rows["example_id"].combine_chunks()
        found = self._scan.shard(
            read_vectors(unit.piece.place, unit.piece.row_groups or ()),
            lambda some: ids.take(pa.array(some)).to_numpy(zero_copy_only=False),
            report=report,
        )
        unfamiliar = rows["familiarity"].to_numpy() < self._unfamiliar_below
        return Output(
            {
                self._tables.group: pa.table(
                    {name: rows[name] for name in rows.column_names} | {"score": found.group},
                    schema=schemas.GROUP_INFLUENCE,
                ),
                self._tables.rankings: ranking_table(found.ranking, rows),
                self._tables.histogram: pa.table({"count": found.histogram.counts}, schema=schemas.HISTOGRAM),
            },
            rows_in=rows.num_rows,
            rows_out=rows.num_rows,
            counters={"unfamiliar_rows": int(unfamiliar.sum())},
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


def ranking_of(table: pa.Table, queries: int, examples: int, shard: str) -> Ranking:
    """The ranking of a unit of so many examples, out of its table of rankings, whose rows it names.

    Args:
        queries: for which it was made.
        shard: what to call the table.
    """
    shape = (queries, table.num_rows // queries)
    return Ranking(
        scores=table["score"].to_numpy().reshape(shape),
        ids=table["example_id"].to_numpy().reshape(shape),
        shards=np.full(shape, shard, dtype=object),
        rows=np.arange(table.num_rows).reshape(shape),
        examples=examples,
    )
