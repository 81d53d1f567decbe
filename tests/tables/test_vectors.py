"""Vectors out of the pages of a Parquet file, against Arrow's reader."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from influcoder_ray.tables import schemas, vectors
from influcoder_ray.tables.arrays import vector_matrix
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import parquet_bytes
from influcoder_ray.tables.vectors import read_vectors

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made_up(rows: int, width: int, kind: str) -> pa.Table:
    """Embeddings whose numbers are any bits that a finite number may have."""
    generator = np.random.default_rng(rows * 1000 + width)
    if kind == "int8":
        numbers = generator.integers(-127, 128, size=(rows, width)).astype(np.int8)
        column: Any = pa.array([row.tobytes() for row in numbers], pa.binary(width))
    else:
        flat = pa.array(generator.normal(size=rows * width).astype(np.float16))
        column = pa.FixedSizeListArray.from_arrays(flat, width)
    cells = {
        "example_id": [f"doc:{row}" for row in range(rows)],
        "source": ["a.parquet:0"] * rows,
        "embedding": column,
        "familiarity": np.full(rows, 50, np.float32),
    }
    return pa.table(cells, schema=schemas.embeddings(width, kind))


@given(st.integers(1, 3000), st.integers(1, 400), st.integers(1, 900), st.sampled_from(["float16", "int8"]))
@quick
def test_vectors_are_those_that_arrow_reads_however_pages_and_row_groups_fall(
    tmp_path: Path, rows: int, width: int, rows_per_group: int, kind: str
) -> None:
    """Prevents a vector that begins in the middle of another, at the end of a page for example."""
    table = made_up(rows, width, kind)
    place = Place(str(tmp_path / "vectors.parquet"))
    place.write_whole(parquet_bytes(table, rows_per_group))
    found = list(read_vectors(place))
    assert [len(block) for block in found[:-1]] == [rows_per_group] * (len(found) - 1)
    assert np.concatenate(found).tobytes() == vector_matrix(table).tobytes()
    assert all(block.flags.writeable and block.dtype == kind for block in found)
    last = list(read_vectors(place, [len(found) - 1]))
    assert last[0].tobytes() == found[-1].tobytes()


def test_our_own_tables_are_read_without_arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a new version of Arrow that writes otherwise from making the search slow without a sign."""
    place = Place(str(tmp_path / "vectors.parquet"))
    table = made_up(9000, 384, "float16")
    place.write_whole(parquet_bytes(table))
    monkeypatch.setattr(vectors, "vector_matrix", None)
    assert np.concatenate(list(read_vectors(place))).tobytes() == vector_matrix(table).tobytes()


@pytest.mark.parametrize(
    "written",
    [
        {"compression": "zstd"},
        {"use_dictionary": True, "compression": "none"},
        {"use_dictionary": False, "compression": "none", "data_page_version": "2.0"},
        {"use_dictionary": False, "compression": "none", "write_statistics": False},
    ],
)
def test_tables_that_others_have_written_are_read_too(tmp_path: Path, written: dict[str, Any]) -> None:
    """Prevents garbage out of compressed or encoded pages."""
    table = made_up(500, 33, "float16")
    path = tmp_path / "vectors.parquet"
    pq.write_table(table, path, row_group_size=200, **written)
    found = np.concatenate(list(read_vectors(Place(str(path)))))
    assert found.tobytes() == vector_matrix(table).tobytes()
