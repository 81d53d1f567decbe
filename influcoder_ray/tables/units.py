"""Units: the pieces of a stage's input that are done, committed and repeated as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.fingerprint import digest_of
from influcoder_ray.tables.json_lines import Span
from influcoder_ray.tables.place import Place


@dataclass(frozen=True)
class Unit:
    """A file and some of its row groups; of JSON Lines, which have none, a span of the text or the whole.

    `unit_id` is a hash of the file's identity and name, the part of it and the stage's
    fingerprint, so the same work has the same name on every machine and in every run. `table` is
    the table that its result belongs to, where a stage writes several.
    """

    unit_id: str
    place: Place
    relative: str
    row_groups: tuple[int, ...] | None
    first_row: int
    rows: int | None
    table: str = ""
    span: Span | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "unit_id": self.unit_id,
            "uri": self.place.uri,
            "relative": self.relative,
            "row_groups": None if self.row_groups is None else list(self.row_groups),
            "first_row": self.first_row,
            "rows": self.rows,
            "table": self.table,
            "span": None if self.span is None else list(self.span),
        }

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> "Unit":
        groups, span = fields["row_groups"], fields["span"]
        return Unit(
            fields["unit_id"],
            Place(fields["uri"]),
            fields["relative"],
            None if groups is None else tuple(groups),
            fields["first_row"],
            fields["rows"],
            fields["table"],
            None if span is None else (span[0], span[1]),
        )


def plan_units(
    files: Sequence[DataFile], *, rows_per_unit: int, fingerprint: str, table: str = ""
) -> list[Unit]:
    """Cut files into units with at least `rows_per_unit` rows where they can be had.

    A unit is made of whole row groups, or of whole blocks of lines, of one file.

    The cut depends on the files and on `rows_per_unit` alone, never on machines or on Ray's blocks.
    """
    units = []

    def add(file: DataFile, groups: tuple[int, ...] | None, first_row: int, rows: int | None) -> None:
        span = None
        if groups is not None and file.offsets:
            span, groups = (file.offsets[groups[0]], file.offsets[groups[-1] + 1]), None
        part = ["bytes", *span] if span is not None else None if groups is None else list(groups)
        unit_id = digest_of([file.identity, file.relative, part, fingerprint, table])[:16]
        units.append(Unit(unit_id, file.place, file.relative, groups, first_row, rows, table, span))

    for file in files:
        if file.row_groups is None:
            add(file, None, 0, None)
            continue
        taken: list[int] = []
        first_row = rows = 0
        for group, group_rows in enumerate(file.row_groups):
            taken.append(group)
            rows += group_rows
            if rows >= rows_per_unit:
                add(file, tuple(taken), first_row, rows)
                taken, first_row, rows = [], first_row + rows, 0
        if rows:
            add(file, tuple(taken), first_row, rows)
    return units


def read_rows(unit: Unit, columns: Sequence[str] | None = None) -> pa.Table:
    """The named columns of a unit of one of our own Parquet tables; all if None."""
    with unit.place.open() as stream:
        return pq.ParquetFile(stream).read_row_groups(
            list(unit.row_groups or ()), columns=None if columns is None else list(columns)
        )
