"""The vectors of an embeddings table, one row group after the other, out of the bytes of its file.

A Parquet reader decodes, for each number of a list column, whether a list begins with it and whether it is
there at all, which takes far longer than reading it. Our vectors are all there, all of one length, plain and
uncompressed: each page of the column ends in its numbers as they are in memory. They are taken from there;
a column that was written in any other way is left to Arrow.

Format: https://parquet.apache.org/docs/file-format/data-pages/; headers of pages are Thrift structs in the
compact protocol, https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from influcoder_ray.ahead import in_order
from influcoder_ray.tables.arrays import Steps, Stored, vector_matrix, vector_type
from influcoder_ray.tables.place import Place

_AHEAD = 4
_DATA_PAGE, _PLAIN = 0, 0
_PAGE_TYPE, _PAGE_BYTES, _DATA_HEADER = 1, 3, 5
_VALUES, _ENCODING = 1, 2


class _OtherPage(Exception):
    """A page that is not one of plain numbers."""


def read_vectors(
    place: Place, row_groups: Sequence[int] | None = None, column: str = "embedding"
) -> Iterator[Stored]:
    """The vectors (n, d) of each row group, in order, a few of them read ahead.

    Args:
        row_groups: which; all of the file's if None.
    """
    with place.open() as stream:
        file = pq.ParquetFile(stream)
        groups = range(file.num_row_groups) if row_groups is None else row_groups
        # One thread reads, for there is one place in the stream.
        yield from in_order(lambda group: _read(stream, file, group, column), groups, threads=1, ahead=_AHEAD)


def _read(stream: BinaryIO, file: pq.ParquetFile, group: int, column: str) -> Stored:
    dtype, dimensions = vector_type(file.schema_arrow.field(column).type)
    rows = file.metadata.row_group(group).num_rows
    chunk = _chunk(file, group, column)
    if not _is_plain(chunk, rows if dtype == np.int8 else rows * dimensions):
        return vector_matrix(file.read_row_group(group, columns=[column]), column)
    stream.seek(chunk.data_page_offset)
    data = _whole(stream, chunk.total_compressed_size)
    # A cell of bytes is one value of Parquet's, a list of numbers as many as it has.
    value_bytes = dimensions if dtype == np.int8 else dtype.itemsize
    taken = 0
    try:
        for stop, count in _pages(data):
            size = count * value_bytes
            # What stands before a page's numbers says where lists begin, which is known. They are moved
            # there: memory that has been touched is the cheapest.
            data[taken : taken + size] = data[stop - size : stop]
            taken += size
    except _OtherPage:
        return vector_matrix(file.read_row_group(group, columns=[column]), column)
    if taken != rows * dimensions * dtype.itemsize:
        raise ValueError(f"{column}: row group {group} does not hold {rows} vectors")
    numbers = data[:taken].view(dtype).reshape(rows, dimensions)
    return Steps.of(file.schema_arrow.metadata, column).restore(numbers) if dtype == np.int8 else numbers


def _whole(stream: BinaryIO, size: int) -> npt.NDArray[np.uint8]:
    """So many bytes, in memory that may be written to, as torch wants it.

    Raises:
        EOFError: the file is shorter.
    """
    data = np.empty(size, np.uint8)
    left = memoryview(data.data)
    while len(left):
        count = stream.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"{len(left)} of {size} bytes are missing")
        left = left[count:]
    return data


def _chunk(file: pq.ParquetFile, group: int, column: str) -> Any:
    """Where the column lies in a row group, and how it was written."""
    chunks = file.metadata.row_group(group)
    for place in range(chunks.num_columns):
        chunk = chunks.column(place)
        if chunk.path_in_schema.split(".")[0] == column:
            return chunk
    raise ValueError(f"there is no column {column}")


def _is_plain(chunk: Any, values: int) -> bool:
    """Whether so many numbers, none of them missing, lie in the column's pages as they are in memory."""
    return (
        chunk.compression == "UNCOMPRESSED"
        and not chunk.has_dictionary_page
        and set(chunk.encodings) <= {"RLE", "PLAIN"}
        and chunk.num_values == values
        and chunk.statistics is not None
        and chunk.statistics.null_count == 0
    )


def _pages(data: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """(where it ends, how many values it has) of each page of plain numbers.

    Raises:
        _OtherPage: a page of another kind.
    """
    at = 0
    while at < data.size:
        header, at = _struct(data, at)
        page = header.get(_DATA_HEADER, {})
        if header[_PAGE_TYPE] != _DATA_PAGE or page.get(_ENCODING) != _PLAIN:
            raise _OtherPage
        at += header[_PAGE_BYTES]
        # Once it is yielded, what lies before may be written over.
        yield at, page[_VALUES]


def _struct(data: npt.NDArray[np.uint8], at: int) -> tuple[dict[int, Any], int]:
    """The fields of a Thrift struct by number, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        step, kind = divmod(int(data[at]), 16)
        at += 1
        if step:
            number += step
        else:
            number, at = _whole_number(data, at)
        fields[number], at = _value(data, at, kind)
    return fields, at + 1


def _value(data: npt.NDArray[np.uint8], at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind in (4, 5, 6):
        return _whole_number(data, at)
    if kind == 8:
        size, at = _varint(data, at)
        return bytes(data[at : at + size]), at + size
    if kind == 12:
        return _struct(data, at)
    raise ValueError(f"a page header with a field of type {kind}, which none has")


def _whole_number(data: npt.NDArray[np.uint8], at: int) -> tuple[int, int]:
    """A signed number, whose last bit is its sign."""
    number, at = _varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _varint(data: npt.NDArray[np.uint8], at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = int(data[at])
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
