"""Whole rows of a corpus: Parquet as it is, lines of JSON with types that all of them fit into."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.tables.cells import read_cells
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.records import common_schema, read_records, schema_of_lines
from influcoder_ray.tables.state import parquet_bytes
from influcoder_ray.tables.units import Piece, Unit, plan_units

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.lists(st.integers(-5, 5), max_size=3),
    st.dictionaries(st.sampled_from(["x", "y"]), st.integers(0, 5), max_size=2),
)
# A table of rows without any column has no rows.
ROWS = st.lists(st.fixed_dictionaries({"a": VALUES}, optional={"b": VALUES, "c": VALUES}), max_size=6)


def unit_of(path: Path, text: bytes) -> Unit:
    path.write_bytes(text)
    return Unit("u", (Piece(Place(str(path)), path.name, None, 0, None),))


def same(held: Any, value: Any, is_json: bool) -> bool:
    """Whether a cell holds a value, apart from what a column of one type cannot say."""
    if is_json and held is not None:
        held = json.loads(held)
    if isinstance(value, dict) and isinstance(held, dict):
        return {k: v for k, v in held.items() if v is not None} == value
    return bool(held == value) or (
        isinstance(value, int) and isinstance(held, float) and held == float(value)
    )


@given(st.lists(ROWS, min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_every_value_of_json_lines_survives_in_one_schema_for_all_files(
    tmp_path_factory: Any, files: list[list[dict[str, Any]]]
) -> None:
    """Prevents a column that changes type from file to file, which no trainer reads, and lost values."""
    folder = tmp_path_factory.mktemp("lines")
    units = [
        unit_of(folder / f"{i}.jsonl", "\n".join(json.dumps(row) for row in rows).encode())
        for i, rows in enumerate(files)
    ]
    schema = common_schema([schema_of_lines(unit) for unit in units])
    for unit, rows in zip(units, files, strict=True):
        records = read_records(unit, schema)
        (folder / "out.parquet").write_bytes(parquet_bytes(records.table))
        held = pq.read_table(folder / "out.parquet").to_pylist()
        assert records.rows == list(range(len(rows)))
        for row, found in zip(rows, held, strict=True):
            for name in schema.names:
                assert same(found[name], row.get(name), bool(schema.field(name).metadata)), (name, row, found)


def test_lines_that_no_table_could_hold_are_named_with_their_numbers(tmp_path: Path) -> None:
    """Prevents rows from moving up when a line above them is left out."""
    text = b'{"a": "x"}\nno json\n\n{"a": "\\ud800"}\n{"a": "y"}\n'
    records = read_records(unit_of(tmp_path / "a.jsonl", text))
    assert records.table.to_pylist() == [{"a": "x"}, {"a": "y"}]
    assert records.rows == [0, 4]
    assert [row for row, _ in records.unreadable] == [1, 2, 3]
    assert "lone surrogate" in records.unreadable[2][1]


def test_a_line_that_no_table_could_hold_is_read_by_no_stage(tmp_path: Path) -> None:
    """Prevents an example from being scored whose row cannot be written: another row would take its place."""
    text = b'{"t": "x"}\n{"t": "scored", "url": "http://\\uD83d"}\n{"t": "\\ud83d\\ude00 a pair"}\n'
    unit = unit_of(tmp_path / "a.jsonl", text)
    cells = read_cells(unit, ["t"])
    assert [row for row, cell in zip(cells.rows, cells["t"], strict=True) if isinstance(cell, str)] == [0, 2]
    assert read_records(unit).rows == [0, 2]


def test_parquet_rows_keep_columns_types_and_metadata(tmp_path: Path) -> None:
    """Prevents a column from being dropped or changed on the way, which the next reader would trip over."""
    table = pa.table(
        {
            "id": pa.array([1, 2, 3], pa.uint8()),
            "when": pa.array([1, None, 3], pa.timestamp("us")),
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
            "nested": [[{"x": 1}], [], None],
        }
    ).replace_schema_metadata({"note": "kept"})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    files = find_data_files(str(tmp_path), setting="corpus.path")
    first, second = plan_units(files, rows_per_unit=2, fingerprint="")
    assert list(read_records(second).rows) == [2]
    joined = pa.concat_tables([read_records(first).table, read_records(second).table])
    assert joined.to_pylist() == table.to_pylist()
    assert joined.schema.equals(pq.read_table(tmp_path / "t.parquet").schema)
    assert joined.schema.metadata[b"note"] == b"kept"
