"""The raw cells of a corpus, read so that one bad cell never spoils its neighbours.

Parquet strings come as bytes and are decoded one by one by whoever uses them; a line of JSON that
cannot be parsed becomes `Unreadable` in every column.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.tables.conditions import Where, matches
from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.fields import column_at, columns_with, existing_path, value_at
from influcoder_ray.tables.json_lines import Unreadable, lines
from influcoder_ray.tables.rows import lines_of_piece, rows_of_lines, rows_of_parquet
from influcoder_ray.tables.units import Piece, Unit

_ROWS_AT_ONCE = 256
# That read small files: what each takes on an object store is mostly waiting.
_THREADS = 8
# Of a Parquet column at a time: a row group may hold gigabytes, of which the first rows are wanted.
_BUFFER_BYTES = 1 << 16


@dataclass(frozen=True)
class Cells:
    """Rows by their numbers (N,), which rise and may leave others out, and their cells by column, (N,) each.

    A column may be a field within another (`meta.id`). Text of a Parquet file is bytes, not yet decoded; a
    column that a JSON line lacks is None.
    """

    rows: Sequence[int]
    values: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> Sequence[Any]:
        return self.values[column]

    def first(self, count: int) -> "Cells":
        """The cells of so many rows, of the first ones."""
        return Cells(self.rows[:count], {name: cells[:count] for name, cells in self.values.items()})

    def at(self, rows: Iterable[int]) -> "Cells":
        """The cells of some of these rows, in their order."""
        wanted = list(rows)
        places = [bisect_left(self.rows, row) for row in wanted]
        return Cells(wanted, {name: [cells[i] for i in places] for name, cells in self.values.items()})


def read_cells(unit: Unit, columns: Sequence[str]) -> Cells:
    """The named columns of a unit's rows, which are numbered as the unit numbers them."""
    parts = [cells for _, cells in read_pieces(unit, columns)]
    if len(parts) == 1:
        return parts[0]
    rows = [
        start + row - piece.first_row
        for start, piece, part in zip(unit.starts, unit.pieces, parts, strict=True)
        for row in part.rows
    ]
    return Cells(rows, {name: list(chain.from_iterable(part[name] for part in parts)) for name in columns})


def read_pieces(unit: Unit, columns: Sequence[str]) -> list[tuple[Piece, Cells]]:
    """The same cells, those of each piece by themselves; an error names the piece that it comes of.

    Here rows have the numbers of the file.
    """

    def read(piece: Piece) -> tuple[Piece, Cells]:
        with unit.reading(piece):
            return piece, read_piece(piece, columns)

    if len(unit.pieces) == 1:
        return [read(unit.piece)]
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(read, unit.pieces))


def read_piece(piece: Piece, columns: Sequence[str], *, wanted: npt.NDArray[np.int64] | None = None) -> Cells:
    """The cells of a piece, whose rows have the numbers of the file.

    Args:
        wanted: rows of the file; no others are read.
    """
    if piece.row_groups is not None:
        numbers, table = rows_of_parquet(piece, columns, wanted=wanted)
        return Cells(numbers.tolist(), _values(table, columns))
    found = lines_of_piece(piece)
    if wanted is None:
        return _of_lines(found, columns)
    chosen = set(wanted.tolist())
    return _of_lines(((number, row) for number, row in found if number in chosen), columns)


def cells_in_parts(
    file: DataFile, columns: Sequence[str], *, row_group: int = 0, rows_at_once: int | None = None
) -> Iterator[tuple[range, Cells]]:
    """A file's rows some at a time, and the cells of those of them for which the file's conditions hold.

    The file is read little further than is asked for.

    Args:
        row_group: of a Parquet file, with which to begin.
        rows_at_once: of a part, at most; 256 if None.
    """
    rows_at_once = rows_at_once or _ROWS_AT_ONCE
    if not file.is_parquet:
        numbered = enumerate(lines(file.place))
        while part := list(islice(numbered, rows_at_once)):
            yield range(part[0][0], part[-1][0] + 1), cells_of_lines(part, columns, file.where)
        return
    starts = list(accumulate(file.row_groups or (), initial=0))
    with file.place.open() as stream:
        parquet = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        read = columns_with(parquet.schema_arrow, [*columns, *(name for name, _ in file.where)])
        for group in (group for group in file.groups_to_read if group >= row_group):
            first_row = starts[group]
            for batch in parquet.iter_batches(rows_at_once, row_groups=[group], columns=read):
                rows, table = range(first_row, first_row + batch.num_rows), pa.Table.from_batches([batch])
                first_row = rows.stop
                if not file.where:
                    yield rows, Cells(rows, _values(table, columns))
                    continue
                passed = matches(file.where, table)
                numbers = np.asarray(rows)[passed.to_numpy()].tolist()
                yield rows, Cells(numbers, _values(table.filter(passed), columns))


def cells_of_lines(numbered: Iterable[tuple[int, bytes]], columns: Sequence[str], where: Where) -> Cells:
    """The named columns of numbered lines of JSON, of those for which the conditions hold."""
    return _of_lines(rows_of_lines(numbered, where), columns)


def _of_lines(rows: Iterable[tuple[int, dict[str, Any] | Unreadable]], columns: Sequence[str]) -> Cells:
    numbers: list[int] = []
    cells: dict[str, list[Any]] = {name: [] for name in columns}
    for number, row in rows:
        numbers.append(number)
        for name in columns:
            cells[name].append(value_at(row, name) if isinstance(row, dict) else row)
    return Cells(numbers, cells)


def _values(table: pa.Table, columns: Sequence[str]) -> dict[str, list[Any]]:
    paths = {name: existing_path(table.schema, name) for name in columns}
    return {name: _undecoded(column_at(table, path)).to_pylist() for name, path in paths.items()}


def _undecoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings as the bytes that they are, at any depth, so that reading never has to decode them."""
    return pa.chunked_array(
        [_undecoded_array(chunk) for chunk in column.chunks], _undecoded_type(column.type)
    )


def _undecoded_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _undecoded_type(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_undecoded_type(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_undecoded_type(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_undecoded_type(kind.value_type), kind.list_size)
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _undecoded_type(f.type)) for f in kind])
    return kind


def _undecoded_array(array: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(_undecoded_type(array.type), safe=False)
