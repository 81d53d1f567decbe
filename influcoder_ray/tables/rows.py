"""The rows of a piece of a corpus for which its conditions hold, each with its number in the file.

Whoever reads a corpus reads it through here, so that no stage sees a row that another leaves out.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.tables.conditions import Where, admits, matches
from influcoder_ray.tables.fields import columns_with
from influcoder_ray.tables.json_lines import Unreadable, lines, parse
from influcoder_ray.tables.units import Piece, Unit

Numbers = npt.NDArray[np.int64]

# Of a row group that is not read whole: rows and bytes of a column that are in memory at a time.
_ROWS_AT_ONCE = 1024
_BUFFER_BYTES = 1 << 20


def rows_of_parquet(
    piece: Piece, columns: Sequence[str] | None = None, *, wanted: Numbers | None = None
) -> tuple[Numbers, pa.Table]:
    """The rows (N,) of a piece of Parquet, rising, and the named columns of them; all columns if None.

    Of a field within a column the whole column is given.

    The columns that conditions are on are read first, and the others of those row groups alone in which a
    row passed. A row group that is not read whole goes by some rows at a time, so that what stands before
    the piece costs time and no memory.

    Args:
        wanted: rows of the file; no others are read, as if by one more condition.
    """
    with piece.place.open() as stream:
        file = _File(stream)
        parts = file.parts(piece, wanted)
        names = file.schema.names if columns is None else columns_with(file.schema, columns)
        numbers = np.concatenate([np.empty(0, dtype=np.int64), *(part.numbers for part in parts)])
        return numbers, file.table(parts, names)


def rows_of_lines(
    numbered: Iterable[tuple[int, bytes]], where: Where
) -> Iterator[tuple[int, dict[str, Any] | Unreadable]]:
    """What numbered lines hold, of those for which the conditions hold.

    A line that cannot be read stays: nobody knows what it would have said, and somebody should know of it.
    """
    for number, line in numbered:
        row = parse(line)
        if isinstance(row, Unreadable) or admits(where, row):
            yield number, row


def lines_of_piece(piece: Piece) -> Iterator[tuple[int, dict[str, Any] | Unreadable]]:
    """The rows of a piece of JSON Lines, as `rows_of_lines` gives them."""
    return rows_of_lines(enumerate(lines(piece.place, piece.span), piece.first_row), piece.where)


def read_rows(unit: Unit, columns: Sequence[str] | None = None) -> pa.Table:
    """The named columns of a unit of one of our own Parquet tables; all if None."""
    return rows_of_parquet(unit.piece, columns)[1]


@dataclass(frozen=True)
class _Part:
    """Some rows of a row group: those from `start` on, up to `end`, that `mask` says.

    `first_row` is the row of the file with which the row group begins.
    """

    group: int
    first_row: int
    start: int
    end: int
    is_whole: bool
    mask: npt.NDArray[np.bool_]

    @property
    def numbers(self) -> Numbers:
        """The rows of the file that are kept."""
        return np.arange(self.first_row + self.start, self.first_row + self.end)[self.mask]

    def masked(self, mask: npt.NDArray[np.bool_]) -> "_Part":
        """The same part with fewer rows."""
        return replace(self, mask=self.mask & mask)


class _File:
    """An open Parquet file of which a piece is read."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._parquet = pq.ParquetFile(stream)
        self.schema: pa.Schema = self._parquet.schema_arrow

    def parts(self, piece: Piece, wanted: Numbers | None) -> list[_Part]:
        """The parts of row groups that have rows to keep."""
        footer = self._parquet.metadata
        sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        starts = list(accumulate(sizes, initial=0))
        parts = []
        for group in piece.row_groups or ():
            first, size = starts[group], sizes[group]
            start = max(piece.first_row - first, 0)
            end = size if piece.rows is None else min(piece.first_row + piece.rows - first, size)
            is_whole = (start, end) == (0, size)
            parts.append(_Part(group, first, start, end, is_whole, np.ones(end - start, dtype=bool)))
        if wanted is not None:
            parts = [part.masked(np.isin(part.numbers, wanted)) for part in parts]
        if piece.where and parts:
            parts = self._passing(parts, piece.where)
        return [part for part in parts if part.mask.any()]

    def table(self, parts: Sequence[_Part], names: Sequence[str]) -> pa.Table:
        """The named columns of the rows that are kept."""
        if all(part.is_whole for part in parts):
            # In one go: on an object store each read waits.
            table = self._parquet.read_row_groups([part.group for part in parts], columns=list(names))
            mask = np.concatenate([np.ones(0, dtype=bool), *(part.mask for part in parts)])
            return table.select(list(names)) if mask.all() else table.select(names).filter(pa.array(mask))
        schema = pa.schema([self.schema.field(name) for name in names], self.schema.metadata)
        # Column by column: on an object store, two that lie apart would be fetched again and again.
        return pa.concat_tables(
            pa.table([self._column(part, field) for field in schema], schema=schema) for part in parts
        )

    def _passing(self, parts: Sequence[_Part], where: Where) -> list[_Part]:
        """The parts with the rows for which the conditions hold."""
        whole = [replace(part, mask=np.ones_like(part.mask)) for part in parts]
        columns = columns_with(self.schema, [name for name, _ in where])
        passed = matches(where, self.table(whole, columns)).to_numpy()
        borders = list(accumulate(len(part.mask) for part in parts))
        return [part.masked(own) for part, own in zip(parts, np.split(passed, borders[:-1]), strict=True)]

    def _column(self, part: _Part, field: pa.Field) -> pa.ChunkedArray:
        """What is kept of a part's column, read from the row group's beginning up to the part's end."""
        parquet = pq.ParquetFile(self._stream, metadata=self._parquet.metadata, buffer_size=_BUFFER_BYTES)
        chunks: list[pa.Array] = []
        row = 0
        for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[part.group], columns=[field.name]):
            start, end = max(row, part.start), min(row + batch.num_rows, part.end)
            mask = part.mask[max(0, start - part.start) : max(0, end - part.start)]
            if mask.any():
                # Filtered, what is kept holds on to nothing of the batch.
                chunks.append(batch.column(field.name)[start - row : end - row].filter(pa.array(mask)))
            row += batch.num_rows
            if row >= part.end:
                break
        return pa.chunked_array(chunks, field.type)
