"""Any process may die at any moment, and the tables are the same."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import psutil
import pytest
from material import file_hashes
from rich.console import Console

from influcoder_ray import pipeline
from influcoder_ray.config import PipelineSettings

pytestmark = pytest.mark.cluster
QUIET = Console(quiet=True)
Driver: TypeAlias = "subprocess.Popen[bytes]"
STAGES = ("sample", "sketch")
# The smallest units that the sample can be cut into, so that there are some before and after the blow.
UNITS = {"rows_per_unit": 1}


@pytest.fixture(scope="module")
def undisturbed(make_settings, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of the sketch tables of a run that nothing befell."""
    settings = make_settings(tmp_path_factory.mktemp("undisturbed"), sketch=UNITS)
    pipeline.run(settings, stages=STAGES, console=QUIET)
    return file_hashes(Path(settings.output) / "sketches")


def when_some_units_are_done(output: Path, blow: Callable[[], None]) -> threading.Thread:
    """Strike once, as soon as two units are committed."""

    def wait() -> None:
        deadline = time.monotonic() + 120
        while len(list(output.glob("_state/sketch/units/*.json"))) < 2:
            if time.monotonic() > deadline:
                return
            time.sleep(0.005)
        blow()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def start_driver(settings: PipelineSettings, file: Path, stderr: int = subprocess.DEVNULL) -> Driver:
    """A run in a process group of its own, so that it can be killed with all that it started."""
    file.write_text(settings.to_yaml())
    return subprocess.Popen(
        [sys.executable, "-m", "influcoder_ray.cli", "run", str(file)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )


def kill_one_actor() -> None:
    ours = [
        p
        for p in psutil.process_iter(["name", "cmdline"])
        if "UnitActor" in " ".join(p.info["cmdline"] or [])
    ]
    assert ours, "no actor to kill"
    ours[0].kill()


def test_a_killed_actor_loses_and_doubles_nothing(
    make_settings: Callable[..., PipelineSettings], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """A spot machine that goes takes its worker along: the units in its hands must be done again."""
    settings = make_settings(tmp_path / "run", sketch=UNITS)
    killer = when_some_units_are_done(tmp_path / "run", kill_one_actor)
    pipeline.run(settings, stages=STAGES, console=QUIET)
    killer.join()
    assert file_hashes(tmp_path / "run/sketches") == undisturbed


def test_a_killed_driver_is_taken_up_where_it_stood(
    make_settings: Callable[..., PipelineSettings], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """A driver that dies must cost the units in hand, not the stage."""
    settings = make_settings(tmp_path / "run", sketch=UNITS)
    driver = start_driver(settings, tmp_path / "settings.yaml")
    when_some_units_are_done(tmp_path / "run", lambda: os.killpg(driver.pid, signal.SIGKILL)).join()
    assert driver.wait() == -signal.SIGKILL
    survivors = {p: p.stat().st_mtime_ns for p in (tmp_path / "run/sketches").rglob("*.parquet")}
    vouched = len(list((tmp_path / "run").glob("_state/sketch/units/*.json")))
    assert vouched >= 2
    pipeline.run(settings, stages=STAGES, console=QUIET)
    assert file_hashes(tmp_path / "run/sketches") == undisturbed
    kept = [p for p, age in survivors.items() if p.stat().st_mtime_ns == age]
    assert len(kept) >= vouched


def test_a_run_that_is_told_to_stop_says_how_to_go_on_and_is_taken_up_where_it_stood(
    make_settings: Callable[..., PipelineSettings], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """A cluster that gives notice sends SIGTERM: silence, or a traceback, would look like a failure."""
    settings = make_settings(tmp_path / "run", sketch=UNITS)
    driver = start_driver(settings, tmp_path / "settings.yaml", subprocess.PIPE)
    # The driver alone: its workers end with it.
    when_some_units_are_done(tmp_path / "run", lambda: driver.send_signal(signal.SIGTERM)).join()
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 143
    assert b"finished units are kept, run the same command again to go on" in said
    assert b"Traceback" not in said
    vouched = len(list((tmp_path / "run").glob("_state/sketch/units/*.json")))
    assert vouched >= 2
    pipeline.run(settings, stages=STAGES, console=QUIET)
    assert file_hashes(tmp_path / "run/sketches") == undisturbed


@pytest.mark.long
def test_a_killed_training_goes_on_from_its_last_checkpoint_to_the_same_encoder(
    make_settings: Callable[..., PipelineSettings], local_ray: None, tmp_path: Path
) -> None:
    """Training begun anew would cost what was paid, and one that goes on differently is no replay."""
    stages = ("sample", "sketch", "distill")
    epochs = {"epochs": 4}
    undisturbed = make_settings(tmp_path / "undisturbed", distill=epochs)
    pipeline.run(undisturbed, stages=stages, console=QUIET)
    settings = make_settings(tmp_path / "run", distill=epochs)
    pipeline.run(settings, stages=stages[:2], console=QUIET)
    driver = start_driver(settings, tmp_path / "settings.yaml")
    deadline = time.monotonic() + 200
    while not list((tmp_path / "run").glob("_state/distill/train/*/checkpoint_manager_snapshot.json")):
        assert driver.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not (tmp_path / "run/encoder").exists()
    pipeline.run(settings, stages=stages, console=QUIET)
    assert file_hashes(tmp_path / "run/encoder") == file_hashes(tmp_path / "undisturbed/encoder")


def test_a_unit_that_keeps_failing_is_named_and_the_others_are_kept(
    make_settings: Callable[..., PipelineSettings], local_ray: None, tmp_path: Path
) -> None:
    """One bad file must not cost the other thousand, nor pass for a success."""
    from influcoder_ray.errors import RunFailed

    settings = make_settings(tmp_path / "run", sketch=UNITS)
    pipeline.run(settings, stages=("sample",), console=QUIET)
    # A folder in the way of one shard's name: that unit cannot be committed, whoever tries.
    from influcoder_ray.stages import sketch

    plan = sketch.plan(settings)
    blocked = plan.unit_ids[3]
    obstacles = [tmp_path / f"run/sketches/{side}/{blocked}.parquet/x" for side in ("pool", "queries")]
    for obstacle in obstacles:
        obstacle.mkdir(parents=True)
    with pytest.raises(RunFailed, match="1 of 6 units could not be done"):
        pipeline.run(settings, stages=STAGES, console=QUIET)
    assert (tmp_path / f"run/_state/sketch/failures/{blocked}.json").exists()
    for obstacle in obstacles:
        obstacle.rmdir()
        obstacle.parent.rmdir()
    done = len(list((tmp_path / "run").glob("_state/sketch/units/*.json")))
    assert done == 5
    pipeline.run(settings, stages=STAGES, console=QUIET)
    assert pipeline.status(settings)["sketch"]
