"""Numbers in and out of Arrow columns: sketches and vectors as matrices."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Stored = npt.NDArray[np.float16] | npt.NDArray[np.int8]
"""Vectors (N, d) as they are kept: float16, or int8 of which only the direction counts."""


def sketch_matrix(table: pa.Table) -> np.ndarray:
    """The unit-length sketches (N, D) of a table of sketches, in the type in which they are stored."""
    metadata = table.schema.metadata
    dtype, width = np.dtype(metadata[b"sketch_dtype"].decode()), int(metadata[b"sketch_width"])
    cells = table.column("sketch").to_pylist()
    return np.frombuffer(b"".join(cells), dtype=dtype).reshape(-1, width)


def vector_matrix(table: pa.Table, column: str = "embedding") -> Stored:
    """The vectors (N, d) of a table of embeddings, in the type in which they are stored."""
    dtype, dimensions = vector_type(table.schema.field(column).type)
    chunks = table.column(column).chunks
    if dtype == np.int8:
        parts = [_bytes(chunk).view(np.int8).reshape(-1, dimensions) for chunk in chunks]
    else:
        parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions) for chunk in chunks]
    return np.concatenate(parts) if parts else np.zeros((0, dimensions), dtype)


def vector_type(column: pa.DataType) -> tuple[np.dtype, int]:
    """The type of the numbers in a column of vectors, and how many a vector has.

    Numbers of one byte lie in a fixed-size binary, for Parquet has no type of that size.
    """
    if pa.types.is_fixed_size_binary(column):
        return np.dtype(np.int8), column.byte_width
    return np.dtype(column.value_type.to_pandas_dtype()), column.list_size


def vector_columns(vectors: npt.NDArray[np.float32], kind: str) -> dict[str, pa.Array]:
    """The columns of a table of embeddings, `schemas.embeddings` of a kind, that hold vectors (N, d).

    A vector is rounded by itself, so it has the same bytes whatever stands beside it.
    """
    if kind == "float16":
        flat = pa.array(vectors.astype(np.float16).reshape(-1))
        return {"embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}
    columns = {"embedding": _cells(rounded_to_int8(vectors).view(np.uint8))}
    if kind == "binary":
        # Of what is kept: the signs of numbers that were rounded to 0 say nothing.
        columns["bits"] = _cells(np.packbits(rounded_to_int8(vectors) < 0, axis=1))
    return columns


def rounded_to_int8(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    """Vectors (N, d) of nearly the same directions, the largest number of each being 127 or -127."""
    largest = np.abs(vectors).max(axis=1, keepdims=True).astype(np.float64)
    return np.rint(vectors * (127 / np.where(largest > 0, largest, 1))).astype(np.int8)


def _cells(rows: npt.NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    """A column whose cells are the rows (N, bytes)."""
    data = pa.py_buffer(np.ascontiguousarray(rows))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, data])


def _bytes(chunk: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint8]:
    width = chunk.type.byte_width
    whole = np.frombuffer(chunk.buffers()[1], np.uint8)
    return whole[chunk.offset * width : (chunk.offset + len(chunk)) * width]
