"""Search by texts: the examples of a shard whose texts are most similar to each query's own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.attribution.topk import rank_shard
from influcoder_ray.stages.work.search import SearchWork, query_rows, ranking_table
from influcoder_ray.tables.arrays import vector_matrix
from influcoder_ray.tables.state import Output
from influcoder_ray.tables.units import Unit

# The column of the vectors, of corpus and queries.
TEXTS = "text_embedding"
_COLUMNS = ["example_id", "source", "familiarity", TEXTS]


class TextSearchWork:
    """Does what `SearchWork` does, and ranks the same units by their text vectors too.

    Args:
        text_rankings: what the table of these rankings is called.
        text_candidates: how many examples they keep for each query.
        search: what `SearchWork` takes.
    """

    def __init__(self, text_rankings: str, text_candidates: int, **search: Any) -> None:
        self._search = SearchWork(**search)
        self._queries = vector_matrix(query_rows(search["queries"], ["example_id", TEXTS]), TEXTS)
        self._table = text_rankings
        self._most = text_candidates

    def read(self, unit: Unit) -> tuple[Any, pa.Table]:
        with unit.place.open() as stream:
            texts = pq.ParquetFile(stream).read_row_groups(list(unit.row_groups or ()), columns=_COLUMNS)
        return self._search.read(unit), texts

    def process(self, unit: Unit, rows: tuple[Any, pa.Table], report: Callable[[int], None]) -> Output:
        whole, texts = rows
        found = self._search.process(unit, whole, report)
        ids = texts["example_id"].to_numpy()
        ranking = rank_shard(self._queries, vector_matrix(texts, TEXTS), ids, self._most)
        return replace(found, tables={**found.tables, self._table: ranking_table(ranking, texts)})
