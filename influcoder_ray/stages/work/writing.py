"""Writing: a part of the corpus, with all its columns, divided into what was chosen and the rest."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from influcoder_ray.stages.parts import part_of
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.records import Records, common_schema, read_records
from influcoder_ray.tables.state import Output, quarantine_table
from influcoder_ray.tables.units import Unit

SCORE, RANK, QUERY = "influcoder_score", "influcoder_rank", "influcoder_query"
ADDED = (SCORE, RANK, QUERY)


class WriteWork:
    """Copies rows of the corpus into the data sets that they belong to.

    A part of which a data set gets no row leaves no file there.

    Args:
        root: the output folder.
        stage: whose quarantine takes the lines that no table could hold.
        chosen: path of the table of what was chosen.
        types: paths of tables with the columns of JSON Lines files.
        aims: what the aims are called.
        taken: the data set of what was chosen, with its score, rank and nearest query.
        rest: that of all else; None for none.
    """

    def __init__(
        self,
        root: str,
        stage: str,
        chosen: str,
        types: Sequence[str],
        aims: Sequence[str],
        taken: str,
        rest: str | None,
    ) -> None:
        self._root = Place(root)
        self._stage = stage
        self._chosen = chosen
        self._aims = pa.array(aims, pa.string())
        self._taken, self._rest = taken, rest
        self._lines_schema = common_schema([self._schema(path) for path in types]) if types else None

    def read(self, unit: Unit) -> tuple[pa.Table, Records | None]:
        with (self._root / self._chosen).open() as stream:
            chosen = pq.read_table(stream, filters=pc.field("part") == part_of(unit))
        wanted = chosen.num_rows or self._rest is not None
        return chosen, read_records(unit, self._lines_schema) if wanted else None

    def process(
        self, unit: Unit, rows: tuple[pa.Table, Records | None], report: Callable[[int], None]
    ) -> Output:
        chosen, records = rows
        if records is None:
            return Output({}, rows_in=0, rows_out=0)
        places = np.searchsorted(np.asarray(records.rows, dtype=np.int64), chosen["row"].to_numpy())
        wanted = np.zeros(records.table.num_rows, dtype=bool)
        wanted[places] = True
        tables: dict[str, pa.Table] = {}
        if chosen.num_rows:
            # What was chosen stands in the order of rows. Arrow's take would first lay all of a column's text
            # together, which fails beyond 2 GiB.
            taken = records.table.filter(pa.array(wanted))
            for name, column in (
                (SCORE, chosen["score"]),
                (RANK, chosen["rank"]),
                (QUERY, self._aims.take(chosen["aim"].combine_chunks())),
            ):
                taken = taken.append_column(name, column)
            tables[self._taken] = taken
        unreadable = []
        if self._rest is not None:
            if not wanted.all():
                tables[self._rest] = records.table.filter(pa.array(~wanted))
            sources = unit.sources(number for number, _ in records.unreadable)
            unreadable = [
                (source, source, why) for source, (_, why) in zip(sources, records.unreadable, strict=True)
            ]
        return Output(
            tables,
            rows_in=len(unreadable),
            rows_out=0,
            quarantine=quarantine_table(self._stage, unreadable),
            counters={f"{name}_rows": table.num_rows for name, table in tables.items()},
        )

    def _schema(self, path: str) -> pa.Schema:
        with (self._root / path).open() as stream:
            schema = pq.read_schema(stream)
        return schema.remove_metadata()
