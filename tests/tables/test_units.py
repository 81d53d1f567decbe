"""Units: a cut of the input that covers every row once and depends on nothing but the input."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.units import Unit, plan_units


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
    for unit in plan_units(files, rows_per_unit=2, fingerprint="f", table="t"):
        assert Unit.from_dict(json.loads(json.dumps(unit.to_dict()))) == unit
