"""Rows: those that meet the conditions, each once, under the number that it has in its file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.tables import rows as module
from influcoder_ray.tables import units as cutting
from influcoder_ray.tables.cells import cells_in_parts, read_cells
from influcoder_ray.tables.conditions import Condition, Where
from influcoder_ray.tables.datafiles import DataFile, find_data_files
from influcoder_ray.tables.lookup import find_rows
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.records import read_records
from influcoder_ray.tables.rows import rows_of_parquet
from influcoder_ray.tables.units import Unit, plan_units

LANGUAGES = ["de", "en", "en-GB", None]
SCORES = [None, 0.25, 0.5, 0.75]
DAYS = [None, *(f"2024-0{month}-15" for month in range(1, 6))]

_WHERE = st.fixed_dictionaries(
    {},
    optional={
        "language": st.sampled_from(
            [
                {"equals": "en"},
                {"one_of": ["de", "en"]},
                {"none_of": ["en"]},
                {"above": "de", "below": "en-GB"},
            ]
        ),
        "score": st.sampled_from([{"at_least": 0.5}, {"above": 0.25, "at_most": 0.5}, {"none_of": [0.5]}]),
        "day": st.sampled_from([{"at_least": "2024-02-01", "below": "2024-05-01"}]),
        "whole": st.sampled_from([{"at_least": 2}, {"one_of": [1, 3]}, {"equals": 99}]),
        "meta.language": st.sampled_from([{"equals": "en"}, {"none_of": ["en"]}]),
        "meta.quality.score": st.sampled_from([{"at_least": 0.5}, {"below": 0.5}]),
    },
)
_ROWS = st.lists(
    st.tuples(st.sampled_from(LANGUAGES), st.sampled_from(SCORES), st.sampled_from(DAYS), st.integers(0, 4)),
    min_size=1,
    max_size=60,
)


def conditions(given: Mapping[str, Any]) -> Where:
    return tuple(sorted((name, Condition.model_validate(test)) for name, test in given.items()))


def expression(given: Mapping[str, Mapping[str, Any]]) -> pc.Expression:
    """The same conditions in pyarrow's own words."""
    found = pc.scalar(True)
    for name, tests in given.items():
        column = pc.field(*name.split("."))
        for test, value in tests.items():
            found &= {
                "equals": lambda c, v: c == v,
                "one_of": lambda c, v: c.isin(v),
                "none_of": lambda c, v: c.is_valid() & ~c.isin(v),
                "at_least": lambda c, v: c >= v,
                "above": lambda c, v: c > v,
                "at_most": lambda c, v: c <= v,
                "below": lambda c, v: c < v,
            }[test](column, value)
    return found


def table_of(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    languages, scores, days, wholes = zip(*rows, strict=True)
    quality = pa.struct({"score": pa.float32()})
    # Some rows say nothing of themselves, and some nothing of their quality.
    meta = [
        {"language": language, "quality": {"score": score} if whole < 3 else None} if whole else None
        for language, score, _, whole in rows
    ]
    return pa.table(
        {
            "row": range(len(rows)),
            "language": pa.array(languages, pa.string()),
            "score": pa.array(scores, pa.float32()),
            "day": pa.array(days, pa.string()),
            "whole": pa.array(wholes, pa.int16()),
            "meta": pa.array(meta, pa.struct({"language": pa.string(), "quality": quality})),
            "text": [f"text of {row}" for row in range(len(rows))],
        }
    )


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of a dozen rows are divided, and gone through by threes."""
    _make_small(monkeypatch)


def _make_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cutting, "_LEAST_ROWS", 1)
    patch.setattr(module, "_ROWS_AT_ONCE", 3)


def write(folder: Path, table: pa.Table, kind: str, rows_per_group: int) -> None:
    if kind == "parquet":
        pq.write_table(table, folder / "a.parquet", row_group_size=rows_per_group)
        return
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


@given(_ROWS, _WHERE, st.sampled_from(["parquet", "jsonl"]), st.integers(1, 70), st.integers(1, 40))
@settings(max_examples=120, deadline=None)
def test_all_readers_give_what_pyarrows_filter_of_the_whole_table_gives(
    rows: list[tuple[Any, ...]], given: dict[str, Any], kind: str, rows_per_group: int, rows_per_unit: int
) -> None:
    """Prevents rows that one stage reads and another does not, twice, out of order or under wrong numbers."""
    table = table_of(rows)
    expected = table.filter(expression(given))
    numbers = expected["row"].to_pylist()
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        _make_small(patch)
        write(Path(name), table, kind, rows_per_group)
        files = find_data_files(name, setting="corpus.path", where=conditions(given))
        units = plan_units(files, rows_per_unit=rows_per_unit, fingerprint="f")
        assert [Unit.from_dict(json.loads(json.dumps(unit.to_dict()))) for unit in units] == units
        assert len({unit.unit_id for unit in units}) == len(units)
        cells = [read_cells(unit, ["text", "row"]) for unit in units]
        records = [read_records(unit) for unit in units]
        parts = [part for file in files for part in cells_in_parts(file, ["row"], rows_at_once=7)]
        found = find_rows(files, ["row"], [f"a.{kind}:{row}" for row in range(len(rows))])
    assert [row for part in cells for row in part.rows] == numbers
    assert [value for part in cells for value in part["row"]] == numbers
    assert [len(part) for part in cells] == [len(part["text"]) for part in cells]
    assert [row for part in records for row in part.rows] == numbers
    # Of no lines nobody can tell the columns.
    written = [row for part in records if part.rows for row in part.table.select(["row", "text"]).to_pylist()]
    assert written == expected.select(["row", "text"]).to_pylist()
    assert [row for _, part in parts for row in part.rows] == numbers
    assert {source: list(cell["row"]) for source, cell in found.items()} == {
        f"a.{kind}:{row}": [row] for row in numbers
    }


@given(_ROWS, st.integers(1, 70), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_parts_of_row_groups_are_of_like_size_and_hold_every_row_once(
    rows: list[tuple[Any, ...]], rows_per_group: int, rows_per_unit: int
) -> None:
    """Prevents a row group of millions from being one unit, and rows on the border of two from being lost."""
    table = table_of(rows)
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        _make_small(patch)
        patch.setattr(cutting, "_MOST_PARTS", 3)
        patch.setattr(cutting, "_MOST_ROWS", 12)
        write(Path(name), table, "parquet", rows_per_group)
        units = plan_units(find_data_files(name, setting="s"), rows_per_unit=rows_per_unit, fingerprint="f")
        found = [read_cells(unit, ["row"]) for unit in units]
    assert [row for part in found for row in part.rows] == list(range(len(rows)))
    assert [len(part) for part in found] == [unit.rows for unit in units]
    assert all(unit.rows is not None and unit.rows >= rows_per_unit for unit in units[:-1])
    # A third of a row group, or what is left below twelve rows; and of the one before less than a unit.
    most = max(rows_per_unit * 2, -(-rows_per_group // 3), 12) + rows_per_unit
    assert all(unit.rows is not None and unit.rows < most for unit in units)


def opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The row groups and columns that are read from here on, as they are asked for."""
    asked: list[Any] = []
    read = pq.ParquetFile.read_row_groups

    def noted(file: Any, groups: list[int], columns: list[str]) -> pa.Table:
        asked.append((tuple(groups), tuple(columns)))
        return read(file, groups, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", noted)
    return asked


def test_row_groups_that_cannot_match_are_not_read_nor_texts_of_those_that_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents terabytes of a crawl from being fetched and decoded to be thrown away."""
    languages = ["de"] * 4 + ["de", "fr"] * 2 + ["en", "de"] * 2 + ["fr"] * 4
    table = pa.table({"language": languages, "text": [f"t{i}" for i in range(16)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    (file,) = find_data_files(str(tmp_path), setting="s", where=conditions({"language": "en"}))
    # Statistics cannot tell that there is no English between de and fr.
    assert file.may_match == (1, 2)
    (unit,) = plan_units([file], rows_per_unit=100, fingerprint="f")
    assert (unit.first_row, unit.rows) == (4, 8)
    asked = opened(tmp_path, monkeypatch)
    cells = read_cells(unit, ["text"])
    assert (list(cells.rows), list(cells["text"])) == ([8, 10], [b"t8", b"t10"])
    assert asked == [((1, 2), ("language",)), ((2,), ("text",))]


def test_a_field_within_a_column_is_read_alone_and_rules_row_groups_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a condition on a page's origin from costing the texts of all pages, or rows that have it."""
    origins = ["Wikipedia"] * 4 + ["C4"] * 4 + ["Book"] * 2 + ["GitHub"] * 2
    meta = [{"set": origin, "url": f"u{i}"} if i % 5 else None for i, origin in enumerate(origins)]
    table = pa.table({"text": [f"t{i}" for i in range(12)], "meta": meta, "meta.set": ["C4"] * 12})
    pq.write_table(table.select(["text", "meta"]), tmp_path / "a.parquet", row_group_size=4)
    (file,) = find_data_files(str(tmp_path), setting="s", where=conditions({"meta.set": "GitHub"}))
    assert file.may_match == (2,)
    asked = opened(tmp_path, monkeypatch)
    (unit,) = plan_units([file], rows_per_unit=100, fingerprint="f")
    assert list(read_cells(unit, ["text"]).rows) == [11]
    assert asked == [((2,), ("meta",)), ((2,), ("text",))]
    # A column of that very name is what is meant.
    pq.write_table(table, tmp_path / "a.parquet")
    (file,) = find_data_files(str(tmp_path), setting="s", where=conditions({"meta.set": "C4"}))
    (unit,) = plan_units([file], rows_per_unit=100, fingerprint="f")
    assert list(read_cells(unit, ["text"]).rows) == list(range(12))


def test_a_unit_of_files_numbers_rows_by_all_that_stand_in_it(tmp_path: Path) -> None:
    """Prevents a row of the second file from being called by the number that it has among the kept ones."""
    for name in "ab":
        table = pa.table({"language": ["en", "de", "de", "en"], "text": [f"{name}{i}" for i in range(4)]})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
    files = find_data_files(str(tmp_path), setting="s", where=conditions({"language": "en"}))
    (unit,) = plan_units(files, rows_per_unit=100, fingerprint="f", joined="all")
    cells, records = read_cells(unit, ["text"]), read_records(unit)
    assert list(cells.rows) == list(records.rows) == [0, 3, 4, 7]
    assert unit.sources(cells.rows) == ["a.parquet:0", "a.parquet:3", "b.parquet:0", "b.parquet:3"]
    assert unit.numbers(unit.sources(cells.rows)).tolist() == list(cells.rows)
    assert list(cells.at([3, 4])["text"]) == [b"a3", b"b0"]
    assert records.table["text"].to_pylist() == ["a0", "a3", "b0", "b3"]


@pytest.mark.parametrize(
    ("column", "test", "kept"),
    [
        (pa.array([True, False, None]), True, [0]),
        (pa.array(["a", "b", None]).dictionary_encode(), ["b", "c"], [1]),
        (pa.array(["a", "b", None], pa.large_string()), {"above": "a"}, [1]),
        (pa.array(["a", "b", None], pa.string_view()), ["a"], [0]),
        (pa.array([b"a", b"\xff", None], pa.binary()), "a", [0]),
        (pa.array([b"a", b"\xff", None]).cast(pa.string(), safe=False), {"none_of": ["a"]}, [1]),
        (pa.array([0.1, 0.2, None], pa.float32()), 0.1, [0]),
        (pa.array([0.5, 0.25, None]).cast(pa.float16()), {"at_least": 0.5}, [0]),
        (pa.array([float("nan"), 1.0, None]), {"at_least": 0}, [1]),
        (pa.array([1, 2, None], pa.decimal128(9, 2)), {"below": 1.5}, [0]),
        (pa.array([date(2024, 1, 1), date(2024, 3, 1), None]), {"below": date(2024, 2, 1)}, [0]),
        (pa.array([datetime(2024, 1, 1), datetime(2024, 3, 1), None]), {"at_least": "2024-03-01"}, [1]),
        (
            pa.array([datetime(2024, 1, 1), datetime(2024, 3, 1), None], pa.timestamp("ns", "Europe/Berlin")),
            {"above": "2024-02-29T23:30:00Z"},
            [1],
        ),
        (pa.nulls(3), "a", []),
        (pa.nulls(3), {"none_of": ["a"]}, []),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_columns_of_every_type_are_compared_and_null_meets_no_condition(
    column: pa.Array, test: Any, kept: list[int], tmp_path: Path
) -> None:
    """Prevents a corpus from being refused, or compared as something else, for how a column is kept."""
    pq.write_table(pa.table({"c": column, "i": range(3)}), tmp_path / "a.parquet")
    (file,) = find_data_files(str(tmp_path), setting="s", where=conditions({"c": test}))
    found = [
        row
        for unit in plan_units([file], rows_per_unit=9, fingerprint="")
        for row in read_cells(unit, ["i"]).rows
    ]
    assert found == kept


def test_of_lines_a_cell_of_another_kind_is_left_out_and_a_broken_line_is_not(tmp_path: Path) -> None:
    """Prevents one odd value from ending the run, and broken lines from going unseen."""
    lines = [
        '{"s": 1}',
        '{"s": 0.5}',
        '{"s": "1"}',
        '{"s": true}',
        '{"s": null}',
        "{}",
        "{no json",
        '{"s": 2}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (file,) = find_data_files(str(tmp_path), setting="s", where=conditions({"s": {"at_least": 1}}))
    (unit,) = plan_units([file], rows_per_unit=9, fingerprint="")
    assert list(read_cells(unit, ["s"]).rows) == [0, 6, 7]
    records = read_records(unit)
    assert (list(records.rows), [number for number, _ in records.unreadable]) == ([0, 7], [6])


def test_of_lines_a_field_within_a_column_counts_only_where_its_object_has_it(tmp_path: Path) -> None:
    """Prevents a row without origin, or one whose column of that name says otherwise, from being taken."""
    lines = [
        '{"m": {"s": "a"}}',
        '{"m": null}',
        '{"m": {"s": "b"}}',
        '{"m": "a"}',
        '{"m.s": "a", "m": {"s": "b"}}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"m": {}}', '{"m": {"s": {"s": "a"}}}']))
    (file,) = find_data_files(str(tmp_path), setting="s", where=conditions({"m.s": "a"}))
    assert file.columns == ("m", "m.s")
    (unit,) = plan_units([file], rows_per_unit=9, fingerprint="")
    assert list(read_cells(unit, ["m"]).rows) == [0, 4]


def rows_of(file: DataFile, first_row: int, rows: int) -> Iterator[int]:
    piece = cutting.Piece(file.place, file.relative, (0,), first_row, rows)
    yield from rows_of_parquet(piece, ["text"])[0].tolist()


def test_a_part_of_a_large_row_group_is_read_in_the_memory_of_a_part(tmp_path: Path) -> None:
    """Prevents a worker from running out of memory over what stands before its unit."""
    generator, schema = np.random.default_rng(0), pa.schema({"text": pa.string()})
    with pq.ParquetWriter(tmp_path / "a.parquet", schema, compression="none", use_dictionary=False) as writer:
        texts = [generator.bytes(512).hex() for _ in range(40_000)]
        writer.write_table(pa.table({"text": texts}, schema), row_group_size=40_000)
    del texts
    (file,) = find_data_files(str(tmp_path), setting="s")
    assert file.row_groups == (40_000,)
    pool = pa.system_memory_pool()
    before, default = pool.bytes_allocated(), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        assert list(rows_of(file, 38_000, 1000)) == list(range(38_000, 39_000))
    finally:
        pa.set_memory_pool(default)
    # The group is 40 MB, the part one.
    assert pool.max_memory() - before < 12 << 20


@pytest.mark.usefixtures("small_parts")
def test_a_divided_row_groups_units_are_named_by_their_rows(tmp_path: Path) -> None:
    """Prevents two parts of a row group from sharing an output."""
    pq.write_table(pa.table({"text": [str(i) for i in range(12)]}), tmp_path / "a.parquet")
    (file,) = find_data_files(str(tmp_path), setting="s")
    units = plan_units([file], rows_per_unit=3, fingerprint="f")
    assert [(unit.first_row, unit.rows, unit.piece.row_groups) for unit in units] == [
        (first, 3, (0,)) for first in range(0, 12, 3)
    ]
    whole = plan_units([file], rows_per_unit=12, fingerprint="f")
    assert len({unit.unit_id for unit in (*units, *whole)}) == 5
    assert Place(str(tmp_path / "a.parquet")) == whole[0].piece.place
