"""Search by texts: the examples of a shard whose texts are most similar to each query's own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa

from influcoder_ray.attribution.scan import Scan
from influcoder_ray.stages.work.search import SearchWork, query_rows, ranking_table
from influcoder_ray.tables.arrays import vector_matrix
from influcoder_ray.tables.state import Output
from influcoder_ray.tables.units import Unit
from influcoder_ray.tables.vectors import read_vectors

# The column of the vectors, of corpus and queries.
TEXTS = "text_embedding"


class TextSearchWork:
    """Does what `SearchWork` does, and ranks the same units by their text vectors too.

    Args:
        text_rankings: what the table of these rankings is called.
        text_candidates: how many examples they keep for each query.
        search: what `SearchWork` takes.
    """

    def __init__(self, text_rankings: str, text_candidates: int, **search: Any) -> None:
        self._search = SearchWork(**search)
        vectors = vector_matrix(query_rows(search["queries"], ["example_id", TEXTS]), TEXTS)
        self._scan = Scan(
            vectors, text_candidates, threads=search.get("threads", 1), device=self._search.device
        )
        self._table = text_rankings

    def read(self, unit: Unit) -> pa.Table:
        return self._search.read(unit)

    def process(self, unit: Unit, rows: pa.Table, report: Callable[[int], None]) -> Output:
        found = self._search.process(unit, rows, report)
        ids = rows["example_id"].combine_chunks()
        ranking = self._scan.rank(
            read_vectors(unit.piece.place, unit.piece.row_groups or (), TEXTS),
            lambda some: ids.take(pa.array(some)).to_numpy(zero_copy_only=False),
        )
        return replace(found, tables={**found.tables, self._table: ranking_table(ranking, rows)})
