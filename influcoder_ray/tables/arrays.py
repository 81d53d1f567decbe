"""Numbers in and out of Arrow columns: sketches and vectors as matrices."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Stored = npt.NDArray[np.float16] | npt.NDArray[np.float32]
"""Vectors (N, d) out of a table: float16 as they lie there, float32 where they were kept in one byte."""


@dataclass(frozen=True, eq=False)
class Steps:
    """How the vectors of one file were rounded to int8: number i of a vector is offset_i + scale_i x int8.

    A dimension has a scale and an offset of its own: the directions that an encoder has learnt differ in
    spread by an order of magnitude, and all vectors share a large part. They are those of the file's own
    vectors, so that a file has the same bytes whoever wrote which others.
    """

    scale: npt.NDArray[np.float32]
    """(d,)"""
    offset: npt.NDArray[np.float32]
    """(d,)"""

    @staticmethod
    def fit(vectors: npt.NDArray[np.float32]) -> "Steps":
        """Those by which the lowest number of each dimension is -127 and the highest 127."""
        if not len(vectors):
            return Steps(*np.zeros((2, vectors.shape[1]), np.float32))
        low, high = vectors.min(axis=0).astype(np.float64), vectors.max(axis=0).astype(np.float64)
        return Steps(((high - low) / 254).astype(np.float32), ((high + low) / 2).astype(np.float32))

    @staticmethod
    def of(metadata: Mapping[bytes, bytes], column: str) -> "Steps":
        """Those that stand in a table's metadata."""
        found = (np.frombuffer(base64.b64decode(metadata[key.encode()]), "<f4") for key in _keys(column))
        return Steps(*found)

    def metadata(self, column: str) -> dict[str, str]:
        """What `of` reads: each as base64 of little-endian float32."""
        each = (base64.b64encode(some.astype("<f4").tobytes()).decode() for some in (self.scale, self.offset))
        return dict(zip(_keys(column), each, strict=True))

    def round(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
        """The int8 (N, d) next to vectors (N, d)."""
        # A dimension without spread is its offset.
        scale = np.where(self.scale > 0, self.scale, 1).astype(np.float64)
        return np.clip(np.rint((vectors - self.offset) / scale), -127, 127).astype(np.int8)

    def restore(self, numbers: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
        """The vectors (N, d) that int8 (N, d) stand for."""
        found = np.multiply(numbers, self.scale, dtype=np.float32)
        found += self.offset
        return found


def _keys(column: str) -> tuple[str, str]:
    return f"{column}_scale", f"{column}_offset"


def sketch_matrix(table: pa.Table) -> np.ndarray:
    """The unit-length sketches (N, D) of a table of sketches, in the type in which they are stored."""
    metadata = table.schema.metadata
    dtype, width = np.dtype(metadata[b"sketch_dtype"].decode()), int(metadata[b"sketch_width"])
    cells = table.column("sketch").to_pylist()
    return np.frombuffer(b"".join(cells), dtype=dtype).reshape(-1, width)


def vector_matrix(table: pa.Table, column: str = "embedding") -> Stored:
    """The vectors (N, d) of a table of embeddings, of one file if they are int8."""
    dtype, dimensions = vector_type(table.schema.field(column).type)
    chunks = table.column(column).chunks
    if dtype == np.int8:
        numbers = [_bytes(chunk).view(np.int8).reshape(-1, dimensions) for chunk in chunks]
        whole = np.concatenate([np.empty((0, dimensions), np.int8), *numbers])
        return Steps.of(table.schema.metadata, column).restore(whole)
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions) for chunk in chunks]
    return np.concatenate(parts) if parts else np.zeros((0, dimensions), np.float16)


def vector_type(column: pa.DataType) -> tuple[np.dtype, int]:
    """The type of the numbers in a column of vectors, and how many a vector has.

    Numbers of one byte lie in a fixed-size binary, for Parquet has no type of that size.
    """
    if pa.types.is_fixed_size_binary(column):
        return np.dtype(np.int8), column.byte_width
    return np.dtype(column.value_type.to_pandas_dtype()), column.list_size


def vector_column(
    vectors: npt.NDArray[np.floating], kind: str, column: str = "embedding"
) -> tuple[pa.Array, dict[str, str]]:
    """The column of a file's vectors (N, d), and what its table's metadata has to say of them.

    Args:
        kind: "float16" or "int8".
        column: what it will be called.
    """
    if kind == "float16":
        flat = pa.array(vectors.astype(np.float16).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]), {}
    wide = vectors.astype(np.float32)
    steps = Steps.fit(wide)
    data = pa.py_buffer(np.ascontiguousarray(steps.round(wide)))
    cells = pa.FixedSizeBinaryArray.from_buffers(pa.binary(wide.shape[1]), len(wide), [None, data])
    return cells, steps.metadata(column)


def _bytes(chunk: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint8]:
    width = chunk.type.byte_width
    whole = np.frombuffer(chunk.buffers()[1], np.uint8)
    return whole[chunk.offset * width : (chunk.offset + len(chunk)) * width]
