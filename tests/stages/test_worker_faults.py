"""Workers that hang, crash or cannot begin cost what they had in hand, and are told of in one line."""

import gzip
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray.cloudpickle
from rich.console import Console

from influcoder_ray.errors import RunFailed
from influcoder_ray.stages.cluster import Reservation
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.units_on_ray import WorkPlan, run_units
from influcoder_ray.tables.cells import read_pieces
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, Output, StageState
from influcoder_ray.tables.units import LINE_BYTES, Piece, Unit, plan_units

pytestmark = pytest.mark.cluster
HUNG_AFTER = 4.0
# Workers cannot import this file: `Work` travels to them whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


Faults = dict[int, tuple[str, int]]
LOADING = -1


class Work:
    """Copies a unit's number, but for faults: by number what happens, and how often over all workers."""

    def __init__(self, scratch: str, faults: Faults) -> None:
        self._scratch, self._faults = Path(scratch), faults
        self._happen(LOADING, lambda rows: None)

    def read(self, unit: Unit) -> int:
        return unit.first_row

    def process(self, unit: Unit, rows: int, report: Callable[[int], None]) -> Output:
        self._happen(rows, report)
        return Output({"numbers": pa.table({"number": [rows]})}, rows_in=1, rows_out=1)

    def _happen(self, number: int, report: Callable[[int], None]) -> None:
        fault, times = self._faults.get(number, ("", 0))
        if len(list(self._scratch.glob(f"{number} *"))) >= times:
            return
        (self._scratch / f"{number} {os.getpid()} {time.monotonic_ns()}").touch()
        if fault == "hang":
            time.sleep(3600)
        elif fault == "crash":
            os._exit(1)
        elif fault == "slow":
            # Longer than a silent worker may be, with signs of life in between.
            for _ in range(3):
                time.sleep(0.5 * HUNG_AFTER)
                report(0)
        else:
            raise ValueError("no such weights")


def done(folder: Path, faults: Faults) -> dict[str, Manifest]:
    """Eight units on two workers, some of which meet faults."""
    pieces = [Piece(Place("numbers.parquet"), "numbers.parquet", (i,), i, 1) for i in range(8)]
    units = [Unit(f"unit-{i}", (piece,)) for i, piece in enumerate(pieces)]
    state = StageState(Place(str(folder / "out")), "count", ("numbers",))
    (folder / "scratch").mkdir()
    plan = WorkPlan(state, units, Work, {"scratch": str(folder / "scratch"), "faults": faults})
    reservation = Reservation(1, 2, cpus=1, gpus=0, hung_after_seconds=HUNG_AFTER)
    return run_units(plan, Fingerprint({"stage": "count"}), reservation, Display(Console(quiet=True)))


class Reading:
    """Counts a unit's rows."""

    def read(self, unit: Unit) -> list[Any]:
        return [text for _, cells in read_pieces(unit, ["text"]) for text in cells["text"]]

    def process(self, unit: Unit, rows: list[Any], report: Callable[[int], None]) -> Output:
        return Output({"numbers": pa.table({"number": [len(rows)]})}, rows_in=1, rows_out=1)


def failure(folder: Path, unit: str) -> dict[str, Any]:
    return dict(json.loads((folder / f"out/_state/count/failures/{unit}.json").read_text()))


def committed(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "out/_state/count/units").glob("*.json")}


ALL = {f"unit-{i}" for i in range(8)}


def test_a_stage_outlasts_a_hang_and_five_crashes_and_lets_slow_work_be(
    local_ray: None, tmp_path: Path
) -> None:
    """A worker that stands still would hold a GPU for ever, and one that is slow must not be taken for it."""
    faults = {1: ("slow", 1), 3: ("hang", 1), 5: ("crash", 5)}
    assert done(tmp_path, faults).keys() == ALL
    happened = [int(path.name.split()[0]) for path in (tmp_path / "scratch").iterdir()]
    assert sorted(happened) == [1, 3, 5, 5, 5, 5, 5]


def test_units_that_always_hang_or_crash_are_set_aside_alone_with_what_is_known(
    local_ray: None, tmp_path: Path
) -> None:
    """Without an end to it, one bad row would take worker after worker, and other units along."""
    with pytest.raises(RunFailed, match="2 of 8 units could not be done") as failed:
        done(tmp_path, {3: ("hang", 99), 5: ("crash", 99)})
    assert "\n" not in str(failed.value)
    assert committed(tmp_path) == ALL - {"unit-3", "unit-5"}
    hung, crashed = failure(tmp_path, "unit-3"), failure(tmp_path, "unit-5")
    assert hung["error"].startswith(
        "numbers.parquet, rows 3 on: 2 workers hung, the last one computing: no sign"
    )
    assert "time.sleep(3600)" in hung["stack"]
    assert crashed["error"].startswith(
        "numbers.parquet, rows 5 on: 6 workers ended while they had it in hand"
    )


def test_a_fault_in_one_of_a_units_files_names_that_file(local_ray: None, tmp_path: Path) -> None:
    """Prevents a person from having to look through hundreds of files for the broken one."""
    (tmp_path / "corpus").mkdir()
    for number in range(8):
        (tmp_path / f"corpus/{number}.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 5))
    files = find_data_files(str(tmp_path / "corpus"), setting="test")
    large = [replace(file, size_bytes=LINE_BYTES) for file in files]
    units = plan_units(large, rows_per_unit=12, fingerprint="f", joined="all")
    (tmp_path / "corpus/5.jsonl.gz").write_bytes(b"was overwritten after it had been planned")
    state = StageState(Place(str(tmp_path / "out")), "count", ("numbers",))
    reservation = Reservation(1, 1, cpus=1, gpus=0, hung_after_seconds=60)
    plan = WorkPlan(state, units, Reading, {})
    with pytest.raises(RunFailed, match="1 of 2 units could not be done") as failed:
        run_units(plan, Fingerprint({"stage": "count"}), reservation, Display(Console(quiet=True)))
    said = str(failed.value)
    assert "\n" not in said
    assert "4 files from 4.jsonl.gz to 7.jsonl.gz: failed 3 times" in said
    assert "; in 5.jsonl.gz, rows 0 on" in said
    assert committed(tmp_path) == {units[0].unit_id}
    assert failure(tmp_path, units[1].unit_id)["error"] in said


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("unmade", "workers cannot begin: failed 3 times, the last time with ValueError: no such weights"),
        ("hang", "workers cannot begin: 2 workers hung, the last one loading: no sign of life"),
    ],
)
def test_workers_that_cannot_begin_end_the_stage_in_one_line(
    local_ray: None, tmp_path: Path, fault: str, said: str
) -> None:
    """What every unit would meet is one fault: a thousand times the same, or a traceback, hides it."""
    with pytest.raises(RunFailed) as failed:
        done(tmp_path, {LOADING: (fault, 99)})
    assert str(failed.value).startswith(f"count: {said}")
    assert "\n" not in str(failed.value)
    assert not committed(tmp_path)
