"""How large a stage's files will be: made-up rows are written as the stage writes its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from influcoder_ray.examples import Example
from influcoder_ray.examples.example import to_table
from influcoder_ray.tables.state import parquet_bytes

# A file's schema carries its stage's fingerprint, of about this size.
_FINGERPRINT_BYTES = 1_000
_ROWS = 256
# Of sketches, of which 256 may be hundreds of MiB, and which are not compressed.
_WIDE_ROWS = 16


@dataclass(frozen=True)
class FileSize:
    """The bytes of a Parquet file as a straight line over its rows."""

    file_bytes: float
    row_bytes: float

    def of(self, files: int, rows: float) -> float:
        """The bytes of so many files with so many rows together."""
        return files * self.file_bytes + rows * self.row_bytes


def size_of_examples(examples: Sequence[Example], rows_per_group: int = 4096) -> FileSize:
    """The size of tables of examples that are like these (N,)."""
    return _fit(lambda rows: to_table(examples[:rows], ["train"] * rows), len(examples), rows_per_group)


def size_of_table(
    schema: pa.Schema, examples: Sequence[Example], *, list_length: int = 0, rows_per_group: int = 4096
) -> FileSize:
    """The size of tables with a schema whose ids and sources are like those of examples (N,).

    Args:
        list_length: the numbers in each list of a column of lists.
    """
    wide = any(pa.types.is_fixed_size_binary(field.type) for field in schema)
    rows = _WIDE_ROWS if wide else min(_ROWS, max(2, len(examples)))
    return _fit(lambda n: _made_up(schema, examples, n, list_length), rows, rows_per_group)


def _fit(table_of: Callable[[int], pa.Table], rows: int, rows_per_group: int) -> FileSize:
    def size_bytes(count: int) -> int:
        note = {b"fingerprint": b"x" * _FINGERPRINT_BYTES}
        table = table_of(count)
        noted = table.replace_schema_metadata({**(table.schema.metadata or {}), **note})
        return len(parquet_bytes(noted, rows_per_group))

    few, many = rows // 2, rows
    row_bytes = (size_bytes(many) - size_bytes(few)) / (many - few)
    return FileSize(max(0.0, size_bytes(many) - many * row_bytes), row_bytes)


def _made_up(schema: pa.Schema, examples: Sequence[Example], rows: int, list_length: int) -> pa.Table:
    """Rows of random numbers, as hard to compress as scores, with the ids and sources of examples."""
    generator = np.random.default_rng(0)
    some = [examples[i % len(examples)] for i in range(rows)]

    def cells(field: pa.Field) -> pa.Array:
        kind = field.type
        if field.name == "split":
            return pa.array(["train"] * rows, kind)
        if pa.types.is_string(kind):
            name = {"content_hash": "content_hash", "source": "source"}.get(field.name, "example_id")
            return pa.array([getattr(example, name) for example in some], kind)
        if pa.types.is_fixed_size_binary(kind):
            return pa.array([generator.bytes(kind.byte_width) for _ in range(rows)], kind)
        if pa.types.is_fixed_size_list(kind):
            flat = generator.standard_normal(rows * kind.list_size).astype(np.float16)
            return pa.FixedSizeListArray.from_arrays(pa.array(flat), kind.list_size)
        if pa.types.is_list(kind):
            return pa.array(list(generator.random((rows, list_length), np.float32)), kind)
        if pa.types.is_boolean(kind):
            return pa.array([False] * rows, kind)
        if pa.types.is_integer(kind):
            return pa.array(generator.integers(1, 128, rows), kind)
        return pa.array(generator.random(rows, np.float32), kind)

    return pa.table([cells(field) for field in schema], schema=schema)
