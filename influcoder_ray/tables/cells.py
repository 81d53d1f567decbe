"""The raw cells of a corpus, read so that one bad cell never spoils its neighbours.

Parquet strings come as bytes and are decoded one by one by whoever uses them; a line of JSON that
cannot be parsed becomes `Unreadable` in every column.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.json_lines import lines, parse
from influcoder_ray.tables.units import Piece, Unit

_ROWS_AT_ONCE = 256
# That read small files: what each takes on an object store is mostly waiting.
_THREADS = 8
# Of a Parquet column at a time: a row group may hold gigabytes, of which the first rows are wanted.
_BUFFER_BYTES = 1 << 16


def read_cells(unit: Unit, columns: Sequence[str]) -> dict[str, list[Any]]:
    """The named columns of a unit as Python values, all of the same length.

    Text of a Parquet file is bytes, not yet decoded; a column that a JSON line lacks is None.
    """
    parts = [cells for _, cells in read_pieces(unit, columns)]
    return {name: list(chain.from_iterable(part[name] for part in parts)) for name in columns}


def read_pieces(unit: Unit, columns: Sequence[str]) -> list[tuple[Piece, dict[str, list[Any]]]]:
    """The same cells, those of each piece by themselves; an error names the piece that it comes of."""

    def read(piece: Piece) -> tuple[Piece, dict[str, list[Any]]]:
        with unit.reading(piece):
            return piece, read_piece(piece, columns)

    if len(unit.pieces) == 1:
        return [read(unit.piece)]
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(read, unit.pieces))


def read_piece(piece: Piece, columns: Sequence[str]) -> dict[str, list[Any]]:
    """The cells of a piece, as `read_cells` gives those of a unit."""
    if piece.row_groups is None:
        return cells_of_lines(lines(piece.place, piece.span), columns)
    with piece.place.open() as stream:
        table = pq.ParquetFile(stream).read_row_groups(list(piece.row_groups), columns=list(columns))
    return {name: _undecoded(table.column(name)).to_pylist() for name in columns}


def cells_in_parts(
    file: DataFile, columns: Sequence[str], *, row_group: int = 0, rows_at_once: int | None = None
) -> Iterator[tuple[int, dict[str, list[Any]]]]:
    """A file's cells as `read_cells` gives them, some rows at a time, each part with its first row.

    The file is read little further than is asked for.

    Args:
        row_group: of a Parquet file, with which to begin.
        rows_at_once: of a part, at most; 256 if None.
    """
    rows_at_once = rows_at_once or _ROWS_AT_ONCE
    if not file.is_parquet:
        rows = lines(file.place)
        first_row = 0
        while part := list(islice(rows, rows_at_once)):
            yield first_row, cells_of_lines(part, columns)
            first_row += len(part)
        return
    assert file.row_groups is not None
    groups = list(range(row_group, len(file.row_groups)))
    first_row = sum(file.row_groups[:row_group])
    with file.place.open() as stream:
        parquet = pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        for batch in parquet.iter_batches(rows_at_once, row_groups=groups, columns=list(columns)):
            table = pa.Table.from_batches([batch])
            yield first_row, {name: _undecoded(table.column(name)).to_pylist() for name in columns}
            first_row += batch.num_rows


def cells_of_lines(rows: Iterable[bytes], columns: Sequence[str]) -> dict[str, list[Any]]:
    """The named columns of lines of JSON, as `read_cells` gives them."""
    cells: dict[str, list[Any]] = {name: [] for name in columns}
    for line in rows:
        row = parse(line)
        for name in columns:
            cells[name].append(row.get(name) if isinstance(row, dict) else row)
    return cells


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
