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
from influcoder_ray.tables.arrays import Steps, vector_column, vector_matrix
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import parquet_bytes
from influcoder_ray.tables.vectors import read_vectors

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made_up(rows: int, width: int, kind: str) -> pa.Table:
    """Embeddings of random numbers."""
    generator = np.random.default_rng(rows * 1000 + width)
    column, steps = vector_column(generator.normal(size=(rows, width)), kind)
    cells = {
        "example_id": [f"doc:{row}" for row in range(rows)],
        "source": ["a.parquet:0"] * rows,
        "embedding": column,
        "familiarity": np.full(rows, 50, np.float32),
    }
    return pa.table(cells, schema=schemas.embeddings(width, kind, steps))


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
    assert all(
        block.flags.writeable and block.dtype == (np.float16 if kind == "float16" else np.float32)
        for block in found
    )
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


def test_int8_is_off_by_half_a_step_of_each_dimension_at_most() -> None:
    """Prevents one wide dimension, or a large part that all vectors share, from swallowing the others."""
    generator = np.random.default_rng(0)
    spread = np.geomspace(1, 1e-4, 40)
    vectors = (generator.normal(size=(500, 40)) * spread + 3).astype(np.float32)
    steps = Steps.fit(vectors)
    restored = steps.restore(steps.round(vectors))
    assert (np.abs(restored - vectors) <= steps.scale / 2 + 1e-6).all()
    assert (steps.scale <= 8 * spread / 254).all()
    written = {key.encode(): value.encode() for key, value in steps.metadata("embedding").items()}
    assert Steps.of(written, "embedding").restore(steps.round(vectors)).tobytes() == restored.tobytes()


def test_int8_of_vectors_without_spread_and_of_none_is_exact() -> None:
    """Prevents a division by a spread of 0, as of a unit with one row."""
    one = np.array([[0.5, -0.25, 0.0]], np.float32)
    for some in (one, np.repeat(one, 4, axis=0), one[:0]):
        steps = Steps.fit(some)
        assert steps.restore(steps.round(some)).tolist() == some.tolist()
