"""Machines and workers of a real cluster die in every stage, and the tables are as if none had."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ray_nodes import (
    RAY,
    TABLES,
    Process,
    RayNodes,
    environment,
    file_hashes,
    processes,
    start_driver,
    wait_until_there_are,
)

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(1800)]
# What tells that a stage is at work, and the title of the process that does the work.
AT_WORK = {
    "sketch": ("_state/sketch/units/*.json", 3, "UnitActor"),
    "distill": ("_state/distill/train/*/checkpoint_manager_snapshot.json", 1, "RayTrainWorker"),
    "embed": ("_state/embed/units/*.json", 2, "UnitActor"),
}


def kill_worker(cluster: RayNodes, title: str) -> None:
    processes(title, cluster.node_of(title))[0].kill()


def kill_node(cluster: RayNodes, title: str) -> None:
    cluster.kill(cluster.node_of(title))
    cluster.restore()


def drain_node(cluster: RayNodes, title: str) -> None:
    """What a cloud does that takes a spot machine back: a notice, and seconds later it is gone."""
    node = cluster.node_of(title)
    notice = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot")
    drained = subprocess.run(
        [
            *(RAY, "drain-node", "--address", cluster.address, "--node-id", cluster.node_id(node)),
            *(*notice, "--deadline-remaining-seconds", "5"),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert drained.returncode == 0, drained.stderr
    node.wait(60)
    cluster.kill(node)
    cluster.restore()


def vouched(output: Path, pattern: str) -> dict[Path, int]:
    """When what is done was vouched for; some of it may not be whole yet."""
    return {path: path.stat().st_mtime_ns for path in output.glob(pattern)}


def test_what_was_done_before_machines_and_workers_died_is_kept_and_the_rest_is_the_same(
    whole_cluster: RayNodes, submitted: Path, make_file: Callable[[Path], Path], tmp_path: Path
) -> None:
    """Spot machines come and go through a whole run: a lost or doubled row would show nowhere else."""
    strikes = {"sketch": kill_node, "distill": kill_worker, "embed": kill_node}
    _run_through(strikes, whole_cluster, submitted, make_file(tmp_path / "out"))


@pytest.mark.parametrize(
    "strikes",
    [
        {"sketch": kill_worker, "distill": kill_node, "embed": kill_worker},
        {"sketch": drain_node, "distill": drain_node, "embed": drain_node},
    ],
    ids=["the other way round", "with notice"],
)
def test_it_is_so_whichever_dies_in_which_stage(
    whole_cluster: RayNodes,
    submitted: Path,
    make_file: Callable[[Path], Path],
    tmp_path: Path,
    strikes: dict[str, Callable[[RayNodes, str], None]],
) -> None:
    """As above, for the rest of the pairs of fault and stage."""
    _run_through(strikes, whole_cluster, submitted, make_file(tmp_path / "out"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("stage", list(AT_WORK))
def test_a_driver_that_dies_in_a_stage_is_taken_up_by_the_next_one(
    whole_cluster: RayNodes,
    submitted: Path,
    make_file: Callable[[Path], Path],
    tmp_path: Path,
    stage: str,
    number: signal.Signals,
) -> None:
    """The driver's machine dies like others, and then nobody is left who knows what was done."""
    output = tmp_path / "out"
    file = make_file(output)
    driver = start_driver(whole_cluster.address, file)
    pattern, count, _ = AT_WORK[stage]
    wait_until_there_are(output, pattern, count, driver)
    os.kill(driver.pid, number)
    assert driver.wait(30) == (143 if number == signal.SIGTERM else -number)
    done = vouched(output, "_state/*/units/*.json")
    _finish(start_driver(whole_cluster.address, file), output)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    _assert_equal(output, submitted)


def _run_through(
    strikes: dict[str, Callable[[RayNodes, str], None]], cluster: RayNodes, submitted: Path, file: Path
) -> None:
    output = file.with_suffix("")
    driver = start_driver(cluster.address, file)
    done: dict[Path, int] = {}
    for stage, strike in strikes.items():
        pattern, count, title = AT_WORK[stage]
        wait_until_there_are(output, pattern, count, driver)
        done |= vouched(output, "_state/*/units/*.json")
        strike(cluster, title)
        assert driver.poll() is None, f"{stage} was over before the blow"
    _finish(driver, output)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    _assert_equal(output, submitted)


def _finish(driver: Process, output: Path) -> None:
    assert driver.wait(400) == 0, output.with_suffix(".log").read_text()[-3000:]


def _assert_equal(output: Path, submitted: Path) -> None:
    for table in TABLES:
        assert file_hashes(output / table) == file_hashes(submitted / table), table
