"""`jobs/benchmark.py units`: what it makes of units' times, and one small run of all of it."""

import json
import subprocess
import sys
from pathlib import Path

import benchmark
import pytest
from benchmarks.linked_corpus import linked_corpus
from benchmarks.many_units import MadeUpStore, made_up_state, manifest_of, record_figures, request_figures
from benchmarks.units import plan_of, throughput

from influcoder_ray.errors import RunFailed, UserError
from influcoder_ray.tables.cells import read_cells
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest
from influcoder_ray.tables.units import plan_units

CALLED_AT = 1000.0


def manifests(starts: dict[int, float], units: int, seconds: float = 0.5) -> list[Manifest]:
    """Of actors that begin at these seconds after the call and sleep without a pause, `units` each."""
    return [
        Manifest(
            f"{actor}-{number}",
            1,
            1,
            0,
            seconds,
            (),
            {
                "actor": actor,
                "began_at": CALLED_AT + start + number * seconds,
                "ended_at": CALLED_AT + start + (number + 1) * seconds,
            },
        )
        for actor, start in starts.items()
        for number in range(units)
    ]


def test_actors_that_never_wait_reach_the_ideal_however_late_the_last_one_came() -> None:
    """Prevents the seconds in which actors start from being charged to the scheduling, or hidden from it."""
    found = throughput(manifests({1: 4.0, 2: 4.0, 3: 4.0, 4: 9.0}, 40), 4, CALLED_AT, 30.0)
    assert found.units == 160
    assert found.start_up_seconds == 9.0
    # From 9 s on, when the fourth came, to 29 s, when it ended: the others had 30 units left, it had 40.
    assert found.units_per_second == pytest.approx((3 * 30 + 40) / 20)
    together = throughput(manifests(dict.fromkeys(range(4), 4.0), 40), 4, CALLED_AT, 30.0)
    assert together.units_per_second == pytest.approx(4 / 0.5)


def test_units_in_hand_when_the_last_actor_comes_count_by_half() -> None:
    """Prevents a share above the ideal, out of work that was done before the clock started."""
    found = throughput(manifests({1: 0.25, 2: 0.25, 3: 4.0}, 1000), 3, CALLED_AT, 600.0)
    assert found.units_per_second <= 3 / 0.5


@pytest.mark.parametrize(
    ("starts", "actors", "said"),
    [({1: 1.0, 2: 1.0}, 3, "2 of 3 actors did a unit"), ({1: 1.0, 2: 90.0}, 2, None)],
)
def test_what_cannot_be_told_is_refused(starts: dict[int, float], actors: int, said: str | None) -> None:
    """Prevents a figure for eight actors that four have earned."""
    if said is None:
        # The second actor alone was at work when both were up: half the ideal, which is what it was.
        assert throughput(manifests(starts, 40), actors, CALLED_AT, 200.0).units_per_second == 2
        return
    with pytest.raises(RunFailed, match=said):
        throughput(manifests(starts, 40), actors, CALLED_AT, 200.0)


def test_a_plan_has_as_many_different_units_as_were_asked_for() -> None:
    """Prevents a figure for 100,000 units out of a plan of fewer."""
    for count in (1, 100, 250):
        units = plan_of(Place("/nowhere"), count)
        assert len({unit.unit_id for unit in units}) == len(units) == count


def test_a_corpus_of_links_is_found_as_one_of_its_size(tmp_path: Path) -> None:
    """Prevents figures for a billion rows out of a corpus that has fewer, or units that have one name."""
    linked_corpus(tmp_path / "corpus", 300, 7, 40)
    files = find_data_files(str(tmp_path / "corpus"), setting="test")
    units = plan_units(files, rows_per_unit=1, fingerprint="f")
    assert len({unit.unit_id for unit in units}) == len(units) == 300
    assert {unit.rows for unit in units} == {7}
    assert len(read_cells(units[-1], ["text"])["text"][0].split()) == 40
    assert sum(path.stat().st_size for path in (tmp_path / "corpus").iterdir()) / 3 < 200_000
    with pytest.raises(UserError, match="is not empty"):
        linked_corpus(tmp_path / "corpus", 300, 7, 40)


def test_the_record_of_units_in_a_made_up_store_holds_them_all(tmp_path: Path) -> None:
    """Prevents seconds for a million units out of a record that has lost some."""
    linked_corpus(tmp_path / "corpus", 600, 2, 3)
    figures = record_figures(str(tmp_path / "corpus"))
    assert (figures["listed_files"], figures["listed_rows"], figures["listed_units"]) == (6, 1200, 600)
    assert all(value is not None and value >= 0 for name, value in figures.items() if "seconds" in name)
    units = [f"{number:016x}" for number in range(5)]
    state = made_up_state(units)
    # Five are too few to be noted down, so each is read by itself.
    assert [state.take_up(units)[unit] for unit in units] == [manifest_of(unit) for unit in units]
    assert state.manifests().keys() == set(units)
    # Notes are read by other threads, whose filesystems are others.
    many = [f"{number:016x}" for number in range(300)]
    state = made_up_state(many)
    state.note([manifest_of(unit) for unit in many])
    MadeUpStore.units = ()
    assert state.manifests() == {}
    MadeUpStore.units = many
    assert state.manifests().keys() == set(many)


def test_requests_cost_what_their_numbers_and_prices_say() -> None:
    """Prevents a bill for a million units that leaves out a table, or the reading."""
    figures = request_figures(1000, price_of_1000_writes=5.0, price_of_1000_reads=1.0)
    assert figures["embed_objects"] == 2000
    assert figures["attribute_objects"] == 4000
    for stage in ("embed", "attribute"):
        writes, reads = figures[f"{stage}_writes"], figures[f"{stage}_reads"]
        assert writes >= figures[f"{stage}_objects"]
        assert figures[f"{stage}_request_cost"] == (writes * 5 + reads) / 1000


@pytest.mark.long
def test_a_small_run_writes_every_key_with_a_sane_value(tmp_path: Path) -> None:
    """Prevents a measurement of minutes that ends in a traceback, or in figures of something else."""
    file = tmp_path / "units.json"
    small = ["--units=40", "--sleep-seconds=0.3", "--actors=2", "--scaling-units=12", "--planned-units=3000"]
    # As the command that it is: Ray's workers find its modules beside the script.
    command = [sys.executable, benchmark.__file__, "units", *small, "--memory-seconds=10", f"--json={file}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "share of the ideal throughput" in done.stdout
    figures = json.loads(file.read_text())
    assert set(figures) >= {"seconds_to_plan", "versions", "start_up_seconds", "units_per_second"}
    assert figures["seconds_to_first_planned_unit"] > 0
    assert 0.2 < figures["share_of_ideal"] <= 1.05
    assert 0 < figures["share_of_ideal_with_start_up"] < figures["share_of_ideal"]
    assert 1 < figures["two_workers_over_one"] < 2.5
    assert figures["driver_bytes_per_planned_unit"] >= figures["driver_bytes_per_unit_of_plan"] > 0
    assert (figures["units"], figures["actors"], figures["planned_units"]) == (40, 2, 3000)
    assert figures["driver_units_per_second"] > 0
    assert figures["listed_units"] == 3000
    assert figures["bytes_per_unit_to_take_up"] >= figures["bytes_per_unit_taken_up"] > 0
