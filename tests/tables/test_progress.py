"""How far a run is can be told from its folder, cheaply and again and again."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.progress import ProgressReader
from influcoder_ray.tables.state import Manifest, Output, StageState


def _begun(root: Place, stage: str, scheme: str = "1") -> StageState:
    record = StageState(root, stage, (stage,))
    record.begin(Fingerprint({"stage": stage, "scheme": scheme}))
    return record


def _commit(record: StageState, unit: str, rows: int) -> Manifest:
    table = pa.table({"example_id": [str(n) for n in range(rows)]})
    return record.commit(unit, Output({record.stage: table}, rows_in=rows, rows_out=rows), 1.0)


def test_a_folder_that_is_not_there_is_a_run_of_which_nothing_is_done(tmp_path: Path) -> None:
    """Prevents a page that is opened before the run from failing."""
    found = ProgressReader(Place(str(tmp_path / "later")), ["sample", "sketch"]).look()
    assert [(it.stage, it.begun, it.finished, it.units) for it in found.stages] == [
        ("sample", False, False, 0),
        ("sketch", False, False, 0),
    ]
    assert not found.finished


def test_units_are_counted_as_they_are_committed_and_the_key_follows(tmp_path: Path) -> None:
    """Prevents a page that stands still while the run goes on, or is made anew when nothing has happened."""
    root = Place(str(tmp_path))
    reader = ProgressReader(root, ["sample", "sketch"])
    record = _begun(root, "sample")
    keys = [reader.look().key]
    manifests = {}
    for number, rows in enumerate((3, 4)):
        manifests[f"u{number}"] = _commit(record, f"u{number}", rows)
        found = reader.look()
        assert reader.look().key == found.key
        keys.append(found.key)
        assert (found.stages[0].units, found.stages[0].rows) == (number + 1, [3, 7][number])
        assert found.stages[0].begun
        assert not found.stages[0].finished
    record.finish(manifests, {"wall_seconds": 2.5})
    found = reader.look()
    assert found.stages[0].finished
    assert found.stages[0].seconds == 2.5
    assert not found.finished
    assert len({*keys, found.key}) == 4


def test_what_is_no_record_of_these_stages_changes_nothing(tmp_path: Path) -> None:
    """Prevents a report of megabytes from being made anew for each checkpoint, or for itself."""
    root = Place(str(tmp_path))
    reader = ProgressReader(root, ["sample"])
    _begun(root, "sample")
    key = reader.look().key
    (root / "_state" / "sample" / "train" / "checkpoint").write_whole(b"weights")
    _begun(root, "report")
    assert reader.look().key == key


def test_a_manifest_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents ten thousand requests to a store for every look at a large run."""
    root = Place(str(tmp_path))
    reader = ProgressReader(root, ["sample"])
    record = _begun(root, "sample")
    _commit(record, "u0", 2)
    read: list[str] = []
    real = Manifest.from_json

    def counted(data: bytes) -> Manifest:
        read.append(json.loads(data)["unit_id"])
        return real(data)

    monkeypatch.setattr(Manifest, "from_json", staticmethod(counted))
    reader.look()
    _commit(record, "u1", 2)
    for _ in range(3):
        assert reader.look().stages[0].units in (1, 2)
    assert read == ["u0", "u1"]


def test_a_stage_that_begins_anew_is_no_longer_done(tmp_path: Path) -> None:
    """Prevents units of settings that were given up from being counted for the new ones."""
    root = Place(str(tmp_path))
    reader = ProgressReader(root, ["sample"])
    record = _begun(root, "sample")
    record.finish({"u0": _commit(record, "u0", 2)}, {"wall_seconds": 1.0})
    assert reader.look().finished
    _begun(root, "sample", scheme="2")
    found = reader.look()
    assert not found.finished
    assert found.stages[0].units == 0
