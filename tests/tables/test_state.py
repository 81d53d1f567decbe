"""The record of a stage: what manifests vouch for is the table, and nothing else is."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influcoder_ray.errors import RunFailed, UserError
from influcoder_ray.tables import schemas
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import (
    CommittedFile,
    Manifest,
    Output,
    StageState,
    parquet_bytes,
    quarantine_table,
)

SCHEMA = pa.schema([pa.field("example_id", pa.string(), nullable=False), pa.field("score", pa.float32())])
FINGERPRINT = Fingerprint({"model": {"name": "a"}, "seed": 0})
OTHER = Fingerprint({"model": {"name": "b"}, "seed": 0})


def _rows(*ids: str) -> pa.Table:
    return pa.table({"example_id": list(ids), "score": [0.5] * len(ids)}, schema=SCHEMA)


def _commit(state: StageState, unit: str, *ids: str, set_aside: int = 0) -> None:
    refused = quarantine_table(state.stage, [(f"bad{i}", f"f:{i}", "null") for i in range(set_aside)])
    output = Output({"t": _rows(*ids)}, len(ids) + set_aside, len(ids), refused, {"tokens": 3.0})
    state.commit(unit, output, 1.5)


def _ids(state: StageState) -> list[str]:
    return [str(value) for value in state.read("t", SCHEMA)["example_id"].to_pylist()]


@pytest.fixture
def state(tmp_path: Path) -> StageState:
    """A stage that has begun."""
    record = StageState(Place(str(tmp_path / "out")), "embed", ["t"])
    record.begin(FINGERPRINT)
    return record


def _file(state: StageState, unit: str) -> Path:
    return Path(state.root.uri) / "t" / f"{unit}.parquet"


def test_committed_rows_are_read_back_in_order_of_unit(state: StageState) -> None:
    """Prevents rows from being lost between a commit and the next stage, and orders that vary."""
    _commit(state, "u2", "c")
    _commit(state, "u1", "a", "b", set_aside=2)
    _commit(state, "u3")
    assert _ids(state) == ["a", "b", "c"]
    manifest = state.manifests()["u1"]
    assert (manifest.rows_in, manifest.rows_out, manifest.rows_quarantined) == (4, 2, 2)
    assert (manifest.seconds, manifest.counters) == (1.5, {"tokens": 3.0})
    assert state.read("t", SCHEMA).schema.equals(SCHEMA)
    assert state.read("quarantine", schemas.QUARANTINE)["reason"].to_pylist() == ["null", "null"]
    assert state.read("quarantine", schemas.QUARANTINE)["stage"].to_pylist() == ["embed", "embed"]


def test_columns_are_read_in_the_order_in_which_they_are_asked_for(state: StageState) -> None:
    """Prevents a projection from failing, or from mixing columns, because the file has another order."""
    _commit(state, "u1", "a")
    assert state.read("t", SCHEMA, ["score", "example_id"]).to_pylist() == [{"score": 0.5, "example_id": "a"}]
    assert state.read("t", SCHEMA, ["score"]).column_names == ["score"]


def test_a_table_without_files_is_read_as_empty_with_its_columns(state: StageState) -> None:
    """Prevents a stage in which every row was set aside from crashing the next."""
    assert state.read("t", SCHEMA, ["score"]).schema.names == ["score"]
    assert state.read("t", SCHEMA).num_rows == 0


def test_a_unit_done_twice_counts_once(state: StageState) -> None:
    """Prevents a retried or doubled task from doubling its rows."""
    _commit(state, "u1", "a", "b")
    _commit(state, "u1", "a", "b")
    assert _ids(state) == ["a", "b"]


def test_a_manifest_whose_file_was_deleted_or_resized_is_not_counted(state: StageState) -> None:
    """Prevents a damaged shard from being read, or from being taken as done."""
    for unit in ("u1", "u2", "u3"):
        _commit(state, unit, unit)
    _file(state, "u1").unlink()
    with _file(state, "u2").open("ab") as stream:
        stream.write(b"x")
    assert state.manifests().keys() == {"u3"}
    assert [file.path for file in state.files("t")] == ["t/u3.parquet"]
    assert [file.place for file in state.data_files("t")] == [state.root / "t/u3.parquet"]
    assert _ids(state) == ["u3"]


def test_a_lost_quarantine_file_makes_its_unit_undone(state: StageState) -> None:
    """Prevents rows that were set aside from vanishing from the record with their table."""
    _commit(state, "u1", "a", set_aside=1)
    (Path(state.root.uri) / "quarantine/embed-u1.parquet").unlink()
    assert state.manifests() == {}


def test_files_that_no_manifest_names_are_not_read(state: StageState) -> None:
    """Prevents a half-dead task's shard, written and never vouched for, from adding rows."""
    _commit(state, "u1", "a")
    pq.write_table(_rows("stray"), _file(state, "u0"))
    (Path(state.root.uri) / "t/.u9.parquet.0f").write_bytes(b"half")
    assert _ids(state) == ["a"]
    assert [file.relative for file in state.data_files("t")] == ["t/u1.parquet"]


def test_a_tables_files_are_the_next_stages_input(state: StageState) -> None:
    """Prevents wrong row groups or columns (of lists too) from reaching the next stage's plan."""
    rows = pa.table({"example_id": ["a", "b", "c"], "v": pa.array([[1.0]] * 3, pa.list_(pa.float32(), 1))})
    state.commit("u1", Output({"t": rows}, 3, 3, rows_per_group=2), 0.0)
    (file,) = state.data_files("t")
    assert file.row_groups == (2, 1)
    assert file.columns == ("example_id", "v")
    before = file.identity
    state.commit("u1", Output({"t": rows}, 3, 3, rows_per_group=2), 0.0)
    assert state.data_files("t")[0].identity == before


@pytest.mark.parametrize(("rows_in", "rows_out", "set_aside"), [(3, 1, 1), (3, 2, 2), (0, 1, 0), (1, 0, 0)])
def test_rows_that_do_not_add_up_fail_the_unit_and_write_nothing(
    rows_in: int, rows_out: int, set_aside: int, state: StageState
) -> None:
    """Prevents rows from being dropped or doubled inside a stage without anybody noticing."""
    refused = quarantine_table("embed", [("x", "f:0", "null")] * set_aside)
    with pytest.raises(RunFailed, match=f"unit u1 took {rows_in} rows in and accounts for {rows_out} "):
        state.commit("u1", Output({"t": _rows("a")}, rows_in, rows_out, refused), 0.0)
    assert not _file(state, "u1").exists()
    assert state.manifests() == {}


def test_another_fingerprints_folder_is_refused_by_the_fields_that_differ(state: StageState) -> None:
    """Prevents tables of two models from mixing in one folder."""
    _commit(state, "u1", "a")
    state.refuse_other(FINGERPRINT)
    with pytest.raises(UserError) as refused:
        state.refuse_other(OTHER)
    table = state.root / "t"
    assert str(refused.value) == (
        f'{table} holds another run: model.name is "a" there and "b" here; '
        f"use another output folder or delete {table}"
    )
    many = Fingerprint({"model": {"name": "b"}, "seed": 1, "x": 1, "y": 2, "z": 3})
    with pytest.raises(UserError, match=r"\(and 2 more\)"):
        state.refuse_other(many)
    assert _ids(state) == ["a"]


def test_a_difference_that_renews_a_stage_is_not_refused_and_any_other_still_is(state: StageState) -> None:
    """Prevents one more seed from asking a person to delete files, or from letting two models mix."""
    _commit(state, "u1", "a")
    more = Fingerprint({"model": {"name": "a"}, "seed": 1})
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        state.refuse_other(more)
    state.refuse_other(more, ("seed",))
    with pytest.raises(UserError, match=r": model\.name is \S+ there and \S+ here; use"):
        state.refuse_other(Fingerprint({"model": {"name": "b"}, "seed": 1}), ("seed",))
    assert _ids(state) == ["a"]


def test_an_empty_folder_is_refused_to_nobody(tmp_path: Path) -> None:
    """Prevents a first run, or one that ended before its first unit, from being turned away."""
    state = StageState(Place(str(tmp_path)), "embed", ["t"])
    state.refuse_other(FINGERPRINT)
    assert state.fingerprint() is None
    assert list(tmp_path.iterdir()) == []
    state.begin(FINGERPRINT)
    state.refuse_other(OTHER)


def test_after_its_tables_are_deleted_a_stage_starts_afresh(state: StageState) -> None:
    """Prevents the refusal from going on, or old set-aside rows from staying, after its advice was taken."""
    _commit(state, "u1", "a", set_aside=1)
    state.finish(state.manifests(), {})
    neighbour = StageState(state.root, "sketch", ["s"])
    neighbour.begin(FINGERPRINT)
    neighbour.commit("u1", Output({}, 1, 0, quarantine_table("sketch", [("x", "f:0", "null")])), 0.0)
    (state.root / "t").remove()
    state.refuse_other(OTHER)
    state.begin(OTHER)
    assert state.manifests() == {}
    assert state.totals() is None
    assert not state.is_done(OTHER, ["u1"])
    assert [entry.relative for entry in (state.root / "quarantine").files()] == ["sketch-u1.parquet"]
    _commit(state, "u1", "new")
    held = state.fingerprint()
    assert held is not None
    assert held.digest == OTHER.digest
    assert _ids(state) == ["new"]


def test_beginning_again_with_the_same_fingerprint_keeps_what_is_done(state: StageState) -> None:
    """Prevents a resumed run from starting over."""
    _commit(state, "u1", "a")
    state.begin(FINGERPRINT)
    assert _ids(state) == ["a"]


def test_a_stage_is_done_only_with_its_fingerprint_its_units_and_all_files(state: StageState) -> None:
    """Prevents a finished stage from being skipped for another model, more data or a lost shard."""
    _commit(state, "u1", "a")
    _commit(state, "u2", "b")
    assert not state.is_done(FINGERPRINT, ["u1", "u2"])
    state.finish(state.manifests(), {"rows": 2.0})
    assert state.is_done(FINGERPRINT, ["u1", "u2"])
    assert state.totals() == {"rows": 2.0}
    assert not state.is_done(OTHER, ["u1", "u2"])
    assert not state.is_done(FINGERPRINT, ["u1"])
    assert not state.is_done(FINGERPRINT, ["u1", "u2", "u3"])
    _file(state, "u2").unlink()
    assert not state.is_done(FINGERPRINT, ["u1", "u2"])
    _commit(state, "u2", "b")
    assert state.is_done(FINGERPRINT, ["u1", "u2"])


def _closed(state: StageState) -> Path:
    """The folder of a finished stage's record: three units, one with rows set aside."""
    for unit in ("u3", "u1"):
        _commit(state, unit, f"{unit}a", f"{unit}b")
    _commit(state, "u2", "c", set_aside=1)
    state.finish(state.manifests(), {"rows": 5.0})
    return Path(state.root.uri) / "_state/embed"


def test_a_finished_stage_is_read_out_of_one_record_that_says_what_the_manifests_say(
    state: StageState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a hundred thousand reads at the start of every later stage, and a record that says less."""
    folder = _closed(state)
    packed = (folder / "manifests.jsonl.zst").read_bytes()
    totals = (folder / "totals.json").read_bytes()
    (folder / "totals.json").rename(folder / "aside")
    one_by_one = state.manifests()
    assert one_by_one.keys() == {"u1", "u2", "u3"}
    (folder / "aside").rename(folder / "totals.json")
    whole = Place.read_bytes

    def refuse_units(place: Place) -> bytes:
        assert "/units/" not in place.uri
        return whole(place)

    monkeypatch.setattr(Place, "read_bytes", refuse_units)
    assert state.manifests() == one_by_one
    assert list(state.manifests()) == ["u1", "u2", "u3"]
    assert state.is_done(FINGERPRINT, ["u3", "u2", "u1"])
    assert state.finished().digest == FINGERPRINT.digest
    assert _ids(state) == ["u1a", "u1b", "c", "u3a", "u3b"]
    state.finish(dict(reversed(one_by_one.items())), {"rows": 5.0})
    assert (folder / "manifests.jsonl.zst").read_bytes() == packed
    assert (folder / "totals.json").read_bytes() == totals


@pytest.mark.parametrize("damage", ["absent", "cut", "of older code"])
def test_without_its_record_a_finished_stage_is_still_done(damage: str, state: StageState) -> None:
    """Prevents an upgrade, or one lost file, from having a corpus embedded again."""
    folder = _closed(state)
    packed, totals = folder / "manifests.jsonl.zst", folder / "totals.json"
    if damage == "cut":
        packed.write_bytes(packed.read_bytes()[:-9])
    else:
        packed.unlink()
    if damage == "of older code":
        older = json.loads(totals.read_text())
        del older["manifests"]
        totals.write_text(json.dumps(older))
        for file in (folder / "units").iterdir():
            manifest = json.loads(file.read_text())
            for committed in manifest["files"]:
                del committed["rows_per_group"]
            file.write_text(json.dumps(manifest))
    assert state.is_done(FINGERPRINT, ["u1", "u2", "u3"])
    assert state.is_complete()
    assert _ids(state) == ["u1a", "u1b", "c", "u3a", "u3b"]
    assert [file.row_groups for file in state.data_files("t")] == [(2,), (1,), (2,)]
    _file(state, "u2").unlink()
    assert not state.is_done(FINGERPRINT, ["u1", "u2", "u3"])


def test_a_finished_stage_leaves_nothing_half_written(state: StageState) -> None:
    """Prevents a disk that fills, kill by kill, with parts of files that nobody reads or removes."""
    half = Path((state.root / state.tables[0]).path) / f".u9.parquet.{'0f' * 16}"
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_bytes(b"PAR1")
    _closed(state)
    assert not half.exists()
    assert _ids(state) == ["u1a", "u1b", "c", "u3a", "u3b"]


def test_a_finished_stage_that_is_begun_again_is_open_until_it_is_finished_again(state: StageState) -> None:
    """Prevents the closing record from vouching for a shard in the size that it had before it was lost."""
    _closed(state)
    _file(state, "u2").unlink()
    state.begin(FINGERPRINT)
    assert state.manifests().keys() == {"u1", "u3"}
    assert not state.is_complete()
    assert state.totals() is None
    _commit(state, "u2", "a longer row than it was")
    assert state.manifests().keys() == {"u1", "u2", "u3"}
    assert not state.is_done(FINGERPRINT, ["u1", "u2", "u3"])
    state.finish(state.manifests(), {})
    assert state.is_done(FINGERPRINT, ["u1", "u2", "u3"])
    assert _ids(state) == ["u1a", "u1b", "a longer row than it was", "u3a", "u3b"]


@given(rows=st.integers(0, 40), rows_per_group=st.integers(1, 50), first=st.integers(0, 40))
def test_row_groups_that_a_manifest_tells_are_those_of_the_file(
    rows: int, rows_per_group: int, first: int
) -> None:
    """Prevents the next stage from planning units of row groups that are not there, or not all that are."""
    ids = [str(number) for number in range(rows)]
    table = pa.concat_tables([_rows(*ids[:first]), _rows(*ids[first:])])
    data = parquet_bytes(table, rows_per_group)
    footer = pq.ParquetFile(pa.BufferReader(data)).metadata
    told = CommittedFile("t", "t/u.parquet", rows, len(data), "", rows_per_group).row_groups
    assert told == tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))


def test_the_next_stage_gets_only_a_finished_table_with_all_its_files(state: StageState) -> None:
    """Prevents a later stage from reading a table that is half there as if it were the whole."""
    _commit(state, "u1", "a")
    _commit(state, "u2", "b")
    with pytest.raises(UserError, match=r"t: not there yet; run the embed stage first"):
        state.finished()
    state.finish(state.manifests(), {})
    assert state.finished().digest == FINGERPRINT.digest
    _file(state, "u1").unlink()
    with pytest.raises(UserError, match="run the embed stage"):
        state.finished()


def test_files_that_are_no_tables_are_vouched_for_too(tmp_path: Path) -> None:
    """Prevents a half-copied encoder or an edited report from counting as done."""
    state = StageState(Place(str(tmp_path)), "distill", ["encoder", "report.html"])
    state.begin(FINGERPRINT)
    files = {"encoder/config.json": b"{}", "encoder/model.safetensors": b"w", "report.html": b"<p>"}
    state.commit_files("all", files, seconds=1.0, counters={"steps": 3})
    assert {file.path for file in state.files("encoder")} == {
        "encoder/config.json",
        "encoder/model.safetensors",
    }
    assert state.manifests()["all"].counters == {"steps": 3}
    (tmp_path / "report.html").write_text("<p>edited")
    assert state.manifests() == {}


def test_every_table_carries_its_fingerprint_even_where_its_rows_came_from_another(state: StageState) -> None:
    """Prevents a table from claiming the settings of the table that it was made from."""
    stale = _rows("a").replace_schema_metadata({"fingerprint": "stale", "sketch_width": "4"})
    state.commit("u1", Output({"t": stale}, 1, 1), 0.0)
    metadata = pq.read_schema(_file(state, "u1")).metadata
    assert Fingerprint.from_json(metadata[b"fingerprint"]).digest == FINGERPRINT.digest
    assert metadata[b"sketch_width"] == b"4"


def test_the_same_table_gives_the_same_bytes() -> None:
    """Prevents a repeated unit from having another checksum, and so from changing what follows."""
    table = pa.table({"a": ["x", None] * 50, "b": [b"1234"] * 100, "c": range(100)})
    again = pa.concat_tables([table.slice(0, 30), table.slice(30)])
    assert parquet_bytes(table, 40) == parquet_bytes(again, 40)
    assert pq.read_table(pa.BufferReader(parquet_bytes(table))).equals(table)


def test_a_commit_that_dies_before_its_manifest_leaves_the_unit_undone(
    state: StageState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents the order of writes from being turned round: the manifest is the last one."""
    whole = Place.write_whole

    def die_at_manifest(place: Place, data: bytes) -> None:
        if place.name.endswith(".json"):
            raise OSError("power lost")
        whole(place, data)

    monkeypatch.setattr(Place, "write_whole", die_at_manifest)
    with pytest.raises(OSError, match="power lost"):
        _commit(state, "u1", "a")
    monkeypatch.undo()
    assert _file(state, "u1").exists()
    assert state.manifests() == {}
    assert _ids(state) == []
    _commit(state, "u1", "a")
    assert _ids(state) == ["a"]


def _noted(state: StageState, count: int = 300) -> dict[str, Manifest]:
    """Units of a stage that runs, each committed and all of them noted down together."""
    for number in range(count):
        _commit(state, f"u{number:03}", f"{number}")
    state.note(list(state.manifests().values()))
    return state.manifests()


def test_units_that_are_noted_down_are_taken_up_without_reading_their_manifests(
    state: StageState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a run of a million units from reading a million small files before it goes on."""
    written = _noted(state)
    _commit(state, "v", "one more, set aside", set_aside=1)
    read: list[str] = []
    whole = Place.read_bytes

    def watch(place: Place) -> bytes:
        read.append(place.name)
        return whole(place)

    monkeypatch.setattr(Place, "read_bytes", watch)
    taken_up = state.take_up(["v", "w", *written])
    assert [name for name in read if name.endswith(".json")] == ["v.json"]
    assert taken_up.keys() == {*written, "v"}
    assert {unit: taken_up[unit] for unit in written} == written
    assert state.manifests() == taken_up


def test_what_a_note_says_of_a_unit_that_is_done_again_is_forgotten(state: StageState) -> None:
    """Prevents a note from vouching, in the end, for what a unit was before its shard was lost."""
    written = _noted(state)
    _file(state, "u007").unlink()
    assert state.take_up(written).keys() == written.keys() - {"u007"}
    # Of the same size as the first, so that nothing else could tell.
    state.commit("u007", Output({"t": _rows("8")}, 1, 1, None, {"tokens": 3.0}), 2.5)
    assert state.manifests()["u007"].files[0].sha256 != written["u007"].files[0].sha256
    assert state.manifests()["u007"].seconds == 2.5
    assert state.take_up(written).keys() == written.keys()


@pytest.mark.parametrize("damage", ["cut", "absent", "no note"])
def test_without_a_note_the_manifests_themselves_are_read(damage: str, state: StageState) -> None:
    """Prevents a copy that was lost, or spoilt, from undoing units that are done."""
    written = _noted(state)
    (note,) = (Path(state.root.uri) / "_state/embed/notes").iterdir()
    if damage == "cut":
        note.write_bytes(note.read_bytes()[:-20])
    elif damage == "absent":
        note.unlink()
    else:
        note.write_bytes(b"no note")
    assert state.manifests() == written
    assert state.take_up(written) == written
    assert state.manifests() == written


def test_another_fingerprint_takes_the_notes_away_and_few_units_leave_none(state: StageState) -> None:
    """Prevents notes of another model's units, and a file more where there was nothing to gain."""
    _commit(state, "u1", "a")
    state.note(list(state.manifests().values()))
    folder = Path(state.root.uri) / "_state/embed/notes"
    assert not folder.exists()
    _noted(state)
    assert len(list(folder.iterdir())) == 1
    (state.root / "t").remove()
    state.begin(OTHER)
    assert not folder.exists()
    assert state.manifests() == {}
