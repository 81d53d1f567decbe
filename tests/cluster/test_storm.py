"""A run through which processes and machines die at random, seeded, fifty times."""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from ray_nodes import TABLES, Process, RayNodes, file_hashes, processes, start_driver

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(5400)]
FAULTS, SEED = 50, 0
# What is killed, and how often beside the others. Workers are the most numerous, and die most often.
KINDS = {"worker": 6, "node": 2, "driver, SIGKILL": 1, "driver, SIGTERM": 1}
TITLES = ("UnitActor", "RayTrainWorker")


def progress(output: Path) -> int:
    """What is done for good: units vouched for, and epochs whose checkpoint Ray Train has noted."""
    units = len(list(output.glob("_state/*/units/*.json")))
    epochs = 0
    for snapshot in output.glob("_state/distill/train/*/checkpoint_manager_snapshot.json"):
        try:
            epochs += len(json.loads(snapshot.read_text()).get("checkpoint_results", []))
        except (OSError, json.JSONDecodeError):
            continue  # It is being written.
    return units + epochs


class Storm:
    """The run, its driver and the faults that befall it."""

    def __init__(self, cluster: RayNodes, file: Path, whole: int) -> None:
        self._cluster, self._file = cluster, file
        self.output = file.with_suffix("")
        self.faults: Counter[str] = Counter()
        self._random = random.Random(SEED)
        # Faults befall the run all along but for its very end, when too little would be left to be struck.
        self._due = sorted(self._random.uniform(0, 0.9 * whole) for _ in range(FAULTS))
        self._driver = start_driver(cluster.address, file)

    def rage(self) -> None:
        """Strike when as much is done as each fault waits for; start the driver again where it was struck."""
        for due in self._due:
            self._wait_for(due)
            kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
            deadline = time.monotonic() + 120
            while not self._strike(kind):
                assert time.monotonic() < deadline, f"nothing to strike after {self.faults}"
                time.sleep(0.05)
            self.faults[kind] += 1

    def end(self) -> None:
        """No driver outlives a test that failed."""
        if self._driver.poll() is None:
            self._driver.kill()

    def finish(self) -> None:
        assert self._driver.wait(900) == 0, self._file.with_suffix(".log").read_text()[-3000:]

    def _wait_for(self, goal: float) -> None:
        deadline = time.monotonic() + 600
        while progress(self.output) < goal:
            assert self._driver.poll() is None, (
                f"the run ended after {self.faults}: " + self._file.with_suffix(".log").read_text()[-3000:]
            )
            assert time.monotonic() < deadline, f"nothing more is done after {self.faults}"
            time.sleep(0.05)

    def _strike(self, kind: str) -> bool:
        """Whether there was anything to strike: between two stages no worker is at work."""
        if kind.startswith("driver"):
            return self._strike_driver(signal.SIGKILL if kind.endswith("KILL") else signal.SIGTERM)
        working = [(node, p) for node in self._cluster.workers for t in TITLES for p in processes(t, node)]
        if not working:
            return False
        node, process = self._random.choice(working)
        if kind == "worker":
            try:
                process.kill()
            except psutil.NoSuchProcess:
                return False
        else:
            self._cluster.kill(node)
            self._cluster.restore()
        return True

    def _strike_driver(self, number: signal.Signals) -> bool:
        os.kill(self._driver.pid, number)
        status = self._driver.wait(60)
        # One that has only begun to import does not listen yet.
        assert status == -number or (status == 143 and number == signal.SIGTERM)
        self._driver: Process = start_driver(self._cluster.address, self._file)
        return True


def test_fifty_kills_lose_and_double_nothing(
    whole_cluster: RayNodes, make_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Faults that are harmless one at a time may not be together: here they overlap."""
    undisturbed = make_file(tmp_path / "undisturbed", "large-corpus", 400)
    assert start_driver(whole_cluster.address, undisturbed).wait(900) == 0
    whole = progress(tmp_path / "undisturbed")
    storm = Storm(whole_cluster, make_file(tmp_path / "storm", "large-corpus", 400), whole)
    try:
        storm.rage()
        storm.finish()
    finally:
        storm.end()
    checked = 0
    for table in TABLES:
        files = file_hashes(storm.output / table)
        assert files == file_hashes(tmp_path / "undisturbed" / table), table
        checked += sum(pq.read_metadata(storm.output / table / f).num_rows for f in files if "parquet" in f)
    units = len(list(storm.output.glob("_state/*/units/*.json")))
    assert units >= 200
    print(f"{storm.faults.total()} faults: {dict(storm.faults)}; {units} units, {checked:,} rows checked")
