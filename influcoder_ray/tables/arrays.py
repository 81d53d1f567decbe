"""Numbers out of Arrow columns: sketches and vectors as matrices."""

import numpy as np
import pyarrow as pa


def sketch_matrix(table: pa.Table) -> np.ndarray:
    """The unit-length sketches (N, D) of a table of sketches, in the type in which they are stored."""
    metadata = table.schema.metadata
    dtype, width = np.dtype(metadata[b"sketch_dtype"].decode()), int(metadata[b"sketch_width"])
    cells = table.column("sketch").to_pylist()
    return np.frombuffer(b"".join(cells), dtype=dtype).reshape(-1, width)


def vector_matrix(table: pa.Table, column: str = "embedding") -> np.ndarray:
    """The vectors (N, d) float16 of a table of embeddings, or of another of its columns."""
    dimensions = table.schema.field(column).type.list_size
    chunks = table.column(column).chunks
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions) for chunk in chunks]
    return np.concatenate(parts) if parts else np.zeros((0, dimensions), np.float16)
