"""The tables as other programs read them: pandas, DuckDB and pyarrow, a folder as it lies there."""

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from influcoder_ray.examples.example import Example, Turn, to_table
from influcoder_ray.tables import schemas
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Output, StageState

N, D = 6, 16


def _embeddings(values: np.ndarray) -> pa.Table:
    flat = pa.array(values.astype(np.float16).reshape(-1))
    columns = {
        "example_id": [f"e{i}" for i in range(len(values))],
        "source": [f"f:{i}" for i in range(len(values))],
        "embedding": pa.FixedSizeListArray.from_arrays(flat, D),
        "familiarity": [50.0] * len(values),
    }
    return pa.table(columns, schema=schemas.embeddings(D))


def _sketches(values: np.ndarray, dtype: str) -> pa.Table:
    rows = len(values)
    columns = {
        "example_id": [f"e{i}" for i in range(rows)],
        "content_hash": ["0"] * rows,
        "split": ["train"] * rows,
        "sketch": [row.astype(dtype).tobytes() for row in values],
        **{name: [1.0] * rows for name in ("sketch_norm", "gradient_norm", "loss")},
        "module_norms": [[0.6, 0.8]] * rows,
        **{name: [3] * rows for name in ("tokens", "labelled_tokens")},
        "truncated": [False] * rows,
    }
    return pa.table(columns, schema=schemas.sketches(D, dtype))


@pytest.fixture
def values() -> np.ndarray:
    """Numbers that float16 holds exactly, (N, D)."""
    return np.random.default_rng(0).integers(-99, 99, (N, D)) / 64


def _duckdb(query: str) -> list[tuple[Any, ...]]:
    found = duckdb.sql(query)
    assert found is not None
    return found.fetchall()


def _put(root: Path, tables: list[pa.Table]) -> Path:
    """One committed file a table, in a folder as a stage leaves it."""
    state = StageState(Place(str(root)), "s", ["t"])
    state.begin(Fingerprint({"stage": "s"}))
    for number, table in enumerate(tables):
        state.commit(f"u{number}", Output({"t": table}, table.num_rows, table.num_rows), 0.0)
    return root / "t"


def test_embeddings_are_read_by_pandas_duckdb_and_pyarrow_as_they_are(
    values: np.ndarray, tmp_path: Path
) -> None:
    """Prevents a layout of vectors that only our own reader understands."""
    folder = _put(tmp_path, [_embeddings(values[:4]), _embeddings(values[4:])])
    assert np.array_equal(np.stack(pd.read_parquet(folder)["embedding"].to_list()), values)
    found = _duckdb(f"select embedding from '{folder}/*.parquet' order by filename")
    assert np.array_equal(np.array([row[0] for row in found]), values)
    column = ds.dataset(folder).to_table()["embedding"]
    assert column.type == pa.list_(pa.float16(), D)
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    assert np.array_equal(flat.reshape(-1, D), values)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_sketches_are_read_by_pandas_duckdb_and_pyarrow_as_they_are(
    dtype: str, values: np.ndarray, tmp_path: Path
) -> None:
    """Prevents sketches that cannot be had back with `numpy.frombuffer`, as their schema says."""
    folder = _put(tmp_path, [_sketches(values[:4], dtype), _sketches(values[4:], dtype)])
    cells = {
        "pandas": pd.read_parquet(folder)["sketch"].to_list(),
        "duckdb": [row[0] for row in _duckdb(f"select sketch from '{folder}/*.parquet' order by filename")],
        "pyarrow": ds.dataset(folder).to_table()["sketch"].to_pylist(),
    }
    for reader, found in cells.items():
        assert np.array_equal(np.stack([np.frombuffer(c, dtype) for c in found]), values), reader
    metadata = ds.dataset(folder).schema.metadata
    assert (metadata[b"sketch_width"], metadata[b"sketch_dtype"]) == (str(D).encode(), dtype.encode())


def test_examples_with_and_without_turns_are_read_by_all_three(tmp_path: Path) -> None:
    """Prevents a file in which every row lacks turns from clashing with one in which some have them."""
    plain = Example("a", "p", "r", "f:0")
    chat = Example("b", "system: s\n\nuser: p", "é\x00", "f:1", (Turn("system", "s"), Turn("user", "p")))
    folder = _put(tmp_path, [to_table([plain], ["train"]), to_table([chat], ["test"])])
    assert pd.read_parquet(folder)["response"].to_list() == ["r", "é\x00"]
    query = f"select example_id, len(turns) from '{folder}/*.parquet' order by example_id"
    assert _duckdb(query) == [("a", None), ("b", 2)]
    turns = ds.dataset(folder).to_table()["turns"].to_pylist()
    assert turns == [None, [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]]
