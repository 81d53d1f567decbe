"""Units: a cut of the input that covers every row once and depends on nothing but the input."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.units import LINE_BYTES, Joined, Unit, plan_units


def _file(name: str, groups: tuple[int, ...] | None, folder: str = "/data") -> DataFile:
    return DataFile(Place(f"{folder}/{name}"), name, f"identity of {groups}", groups, ("text",))


_FILES = st.lists(st.none() | st.lists(st.integers(0, 9), max_size=8).map(tuple), max_size=4)


@given(_FILES, st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_units_cover_every_row_once_in_order(
    groups: list[tuple[int, ...] | None], rows_per_unit: int
) -> None:
    """Prevents rows that no unit holds, rows that two hold, and wrong row numbers in ids."""
    files = [_file(f"{i}.parquet", g) for i, g in enumerate(groups)]
    units = plan_units(files, rows_per_unit=rows_per_unit, fingerprint="f")
    assert len({u.unit_id for u in units}) == len(units)
    for file in files:
        own = [u for u in units if u.piece.relative == file.relative]
        if file.row_groups is None:
            assert [(u.piece.row_groups, u.first_row, u.rows) for u in own] == [(None, 0, None)]
            continue
        taken = [g for u in own for g in u.piece.row_groups or ()]
        assert taken == list(range(len(taken)))
        assert sum(file.row_groups[len(taken) :]) == 0
        for unit in own:
            assert unit.piece.row_groups
            assert unit.rows == sum(file.row_groups[g] for g in unit.piece.row_groups)
            assert unit.first_row == sum(file.row_groups[: unit.piece.row_groups[0]])
        assert all(u.rows is not None and u.rows >= rows_per_unit for u in own[:-1])


@given(_FILES, st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_the_cut_of_a_file_depends_on_that_file_and_the_setting_alone(
    groups: list[tuple[int, ...] | None], rows_per_unit: int
) -> None:
    """Prevents a new file in the corpus, or another mount point, from renaming the work that is done."""

    def ids(files: list[DataFile]) -> set[str]:
        return {u.unit_id for u in plan_units(files, rows_per_unit=rows_per_unit, fingerprint="f")}

    files = [_file(f"{i}", g) for i, g in enumerate(groups)]
    moved = [_file(f"{i}", g, "s3://bucket") for i, g in enumerate(groups)]
    assert ids(files) == ids(moved) == ids(files[::-1])
    alone = [ids([file]) for file in files]
    assert ids(files) == set().union(*alone)


def test_a_units_id_tells_file_name_content_groups_fingerprint_and_table_apart() -> None:
    """Prevents two identical files from sharing an output, and a new model's output from being skipped."""
    one = _file("a", (3, 3))
    cuts = [
        plan_units([one], rows_per_unit=3, fingerprint="f"),
        plan_units([one], rows_per_unit=6, fingerprint="f"),
        plan_units([_file("b", (3, 3))], rows_per_unit=6, fingerprint="f"),
        plan_units([one], rows_per_unit=6, fingerprint="g"),
        plan_units([one], rows_per_unit=6, fingerprint="f", table="t"),
        plan_units([_file("a", (3, 4))], rows_per_unit=7, fingerprint="f"),
    ]
    ids = [unit.unit_id for cut in cuts for unit in cut]
    assert len(set(ids)) == len(ids) == 7


def test_a_unit_comes_back_from_json_as_it_was() -> None:
    """Prevents a unit from changing on its way to an actor."""
    files = [_file("a.parquet", (2, 0, 5)), _file("b.jsonl", None)]
    small = [_file("a", (2,)), _file("b", (3, 4))]
    joined = plan_units(small, rows_per_unit=10, fingerprint="f", joined="all")
    for unit in [*plan_units(files, rows_per_unit=2, fingerprint="f", table="t"), *joined]:
        assert Unit.from_dict(json.loads(json.dumps(unit.to_dict()))) == unit


# Files by their row groups, or by their rows; the latter of JSON Lines were not counted.
_CORPUS = st.lists(
    st.tuples(
        st.sampled_from(["parquet", "other.parquet", "jsonl"]),
        st.lists(st.integers(0, 9), max_size=3).map(tuple) | st.integers(0, 9),
    ),
    max_size=12,
)


def _corpus(kinds: list[tuple[str, tuple[int, ...] | int]]) -> list[DataFile]:
    files = []
    for number, (kind, rows) in enumerate(kinds):
        groups = (rows,) if isinstance(rows, int) else rows
        file = replace(_file(f"{number:02}.{kind}", groups), columns=(kind,))
        if kind == "jsonl" and isinstance(rows, int):
            file = replace(file, row_groups=None, size_bytes=rows * LINE_BYTES)
        elif kind == "jsonl":
            file = replace(file, offsets=tuple(100 * group for group in range(len(groups) + 1)))
        files.append(file)
    return files


def _about(file: DataFile) -> int:
    return file.size_bytes // LINE_BYTES if file.row_groups is None else sum(file.row_groups)


@given(_CORPUS, st.integers(1, 20), st.sampled_from(get_args(Joined)))
@settings(max_examples=300, deadline=None)
def test_joining_takes_no_file_more_than_it_needs_and_never_leaves_the_order(
    kinds: list[tuple[str, tuple[int, ...] | int]], rows_per_unit: int, joined: Joined
) -> None:
    """Prevents units of unlike size, rows that two units have, and rows of one place in units far apart."""
    files = _corpus(kinds)
    of = {file.relative: file for file in files}
    units = plan_units(files, rows_per_unit=rows_per_unit, fingerprint="f", joined=joined)
    alone = plan_units(files, rows_per_unit=rows_per_unit, fingerprint="f")
    assert [piece for unit in units for piece in unit.pieces] == [unit.piece for unit in alone]
    assert len({unit.unit_id for unit in units}) == len(units)

    def can_be_joined(file: DataFile) -> bool:
        is_known = joined == "all" or (joined == "counted" and file.row_groups is not None)
        return is_known and _about(file) < rows_per_unit

    for unit in units:
        members = [of[piece.relative] for piece in unit.pieces]
        if len(members) > 1:
            assert len(set(members)) == len(members)
            assert all(can_be_joined(file) for file in members)
            assert len({file.columns for file in members}) == 1
            assert sum(map(_about, members[:-1])) < rows_per_unit
    for unit, following in pairwise(units):
        last, first = of[unit.pieces[-1].relative], of[following.pieces[0].relative]
        if last != first and can_be_joined(last) and can_be_joined(first) and last.columns == first.columns:
            assert sum(_about(of[piece.relative]) for piece in unit.pieces) >= rows_per_unit


@given(_CORPUS, st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_a_rows_number_in_a_unit_says_in_which_file_it_stands_and_which_row_it_is(
    kinds: list[tuple[str, tuple[int, ...] | int]], rows_per_unit: int
) -> None:
    """Prevents the second file's rows from being called the first one's."""
    files = [file for file in _corpus(kinds) if file.row_groups is not None]
    found = []
    for unit in plan_units(files, rows_per_unit=rows_per_unit, fingerprint="f", joined="counted"):
        assert unit.rows is not None
        numbers = range(unit.first_row, unit.first_row + unit.rows)
        found += unit.sources(numbers)
        assert unit.numbers(unit.sources(numbers)).tolist() == list(numbers)
    assert found == [f"{file.relative}:{row}" for file in files for row in range(_about(file))]


def test_a_file_alone_is_the_same_unit_whether_or_not_it_could_have_been_joined() -> None:
    """Prevents finished work on large files from being done again for the sake of small ones."""
    files = [_file("a.parquet", (2,)), _file("b.parquet", (5, 5)), _file("c.parquet", (3,))]
    cut = {"rows_per_unit": 4, "fingerprint": "f"}
    assert plan_units(files, **cut, joined="all") == plan_units(files, **cut)  # type: ignore[arg-type]


def test_the_id_of_joined_files_tells_each_of_them_and_their_order_apart() -> None:
    """Prevents the output of other rows from being taken for this unit's."""
    a, b, c = (_file(name, (3,)) for name in "abc")
    groups = [[a, b], [b, a], [a, c], [a, replace(b, identity="edited")], [a, b, c]]
    ids = [
        [unit.unit_id for unit in plan_units(files, rows_per_unit=100, fingerprint="f", joined="counted")]
        for files in groups
    ]
    assert [len(found) for found in ids] == [1] * len(groups)
    assert len({unit_id for (unit_id,) in ids}) == len(groups)


def test_files_of_a_row_each_are_joined_by_the_thousand_and_no_more() -> None:
    """Prevents a worker from opening a hundred thousand files before it can commit any of their rows."""
    files = [_file(f"{number:04}.parquet", (1,)) for number in range(2500)]
    units = plan_units(files, rows_per_unit=100_000, fingerprint="f", joined="counted")
    assert [unit.rows for unit in units] == [1024, 1024, 452]


@pytest.mark.parametrize(("suffix", "in_each"), [("jsonl", 5), ("jsonl.gz", 2), ("jsonl.zst", 2)])
def test_lines_that_nobody_has_counted_are_joined_by_their_bytes(suffix: str, in_each: int) -> None:
    """Prevents the first reading of thousands of small files from being as many units."""
    size = 20 * LINE_BYTES
    files = [replace(_file(f"{number}.{suffix}", None), size_bytes=size) for number in range(3 * in_each)]
    units = plan_units(files, rows_per_unit=100, fingerprint="f", joined="all")
    assert [len(unit.pieces) for unit in units] == [in_each] * 3
    assert all(unit.rows is None for unit in units)
    assert len(plan_units(files, rows_per_unit=100, fingerprint="f", joined="counted")) == len(files)
