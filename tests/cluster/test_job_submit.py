"""The pipeline as a submitted job on a real Ray head."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytestmark = pytest.mark.cluster
REPOSITORY = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """The address of a head without CPUs and two worker nodes, which this test starts and stops."""
    # Short: Ray's sockets lie below it, and their paths are limited.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    port, dashboard_port = free_port(), free_port()
    address = f"http://127.0.0.1:{dashboard_port}"
    nodes = [
        start_node(
            "--head",
            "--num-cpus=0",
            f"--port={port}",
            f"--temp-dir={folder}",
            f"--dashboard-port={dashboard_port}",
        )
    ]
    try:
        _wait_for(address)
        for number in (2, 3):
            # One after the other: two that start at once on one machine get in each other's way.
            nodes.append(start_node(f"--address=127.0.0.1:{port}", "--num-cpus=1"))
            _wait_for_nodes(address, number)
        yield address
    finally:
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            try:
                node.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(node.pid, 9)
        shutil.rmtree(folder, ignore_errors=True)


def start_node(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [
            *(RAY, "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000"),
            # Where another Ray runs on this machine the usual port is taken, and no job can be started.
            f"--dashboard-agent-listen-port={free_port()}",
            *arguments,
        ],
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return kept | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def ray_job(dashboard: str, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, "job", command, "--address", dashboard, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )


def _wait_for(address: str) -> None:
    """Until a job can be submitted: the dashboard answers before its node's agent can start any."""
    deadline = time.monotonic() + 120
    while (tried := ray_job(address, "submit", "--", "true")).returncode:
        assert time.monotonic() < deadline, f"no Ray head came up: {tried.stderr[-500:]}"
        time.sleep(0.5)


def _wait_for_nodes(address: str, number: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        listed = subprocess.run(
            [RAY, "list", "nodes", "--address", address, "--format", "json"],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        alive = [node for node in json.loads(listed.stdout or "[]") if node["state"] == "ALIVE"]
        if len(alive) == number:
            return
        assert time.monotonic() < deadline, f"{len(alive)} nodes came up: {listed.stderr[-500:]}"
        time.sleep(0.5)


def submit(
    dashboard: str, *arguments: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    directory = ("--working-dir", str(REPOSITORY))
    return ray_job(dashboard, "submit", *directory, *options, "--", "python", *arguments)


@pytest.fixture(scope="module")
def make_file(
    tmp_path_factory: pytest.TempPathFactory, causal_lm_folder: Path, encoder_folder: Path
) -> Callable[[Path], Path]:
    """Settings files of one tiny problem that differ in their output folder alone."""
    folder = tmp_path_factory.mktemp("problem")
    generator = np.random.default_rng(0)
    words = ["bread", "flour", "river", "stone", "paris", "seven", "eight", "loss"]
    for name, rows in (("corpus", 60), ("queries", 20)):
        texts = [[" ".join(generator.choice(words, 6)) for _ in range(rows)] for _ in range(2)]
        table = pa.table(
            {"id": [f"{name}{i}" for i in range(rows)], "prompt": texts[0], "response": texts[1]}
        )
        pq.write_table(table, folder / f"{name}.parquet")
    columns = {"id": "id", "prompt": "prompt", "response": "response"}

    def make(output: Path) -> Path:
        fields = {
            "output": str(output),
            "corpus": {"path": str(folder / "corpus.parquet"), "columns": columns},
            "queries": {"path": str(folder / "queries.parquet"), "columns": columns},
            "model": {"path": str(causal_lm_folder), "max_tokens": 32},
            "encoder": {"path": str(encoder_folder), "max_tokens": 48},
            "sketch": {"width": 1024, "rows_per_unit": 1},
            "sample": {"pool": 40},
            "distill": {"epochs": 1},
            "evaluate": {"fidelity_examples": 4},
            "workers": {stage: {"cpus": 1} for stage in ("sketch", "embed", "distill", "evaluate")},
        }
        file = output.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(fields))
        return file

    return make


@pytest.fixture(scope="module")
def submitted(
    dashboard: str, make_file: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output folder of a submitted run of all stages."""
    output = tmp_path_factory.mktemp("submitted") / "out"
    done = submit(dashboard, "jobs/run_pipeline.py", "--config", str(make_file(output)))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return output


def test_a_submitted_pipeline_leaves_every_table_and_its_exit_status(dashboard: str, submitted: Path) -> None:
    """What works in one process can fail as a job: other working folder, other workers, no terminal."""
    assert pq.read_table(submitted / "embeddings").num_rows == 60
    assert pq.read_table(submitted / "attributions").num_rows == 20 * 20
    assert (submitted / "report.html").exists()

    file = str(submitted.with_suffix(".yaml"))
    again = submit(dashboard, "jobs/sketch.py", "--config", file)
    assert again.returncode == 0
    assert "Nothing to do" in again.stdout

    refused = submit(dashboard, "jobs/sketch.py", "--config", file, "--set", "sketch.widht=1024")
    assert refused.returncode != 0
    assert "sketch.widht: unknown key" in refused.stdout


def test_a_stopped_job_is_completed_by_the_next_one(
    dashboard: str, submitted: Path, make_file: Callable[[Path], Path], tmp_path: Path
) -> None:
    """`ray job stop` gives a driver three seconds: what it had done must not have to be done again."""
    output = tmp_path / "out"
    arguments = ("jobs/run_pipeline.py", "--config", str(make_file(output)))
    started = submit(dashboard, *arguments, options=("--no-wait", "--submission-id", "to-be-stopped"))
    assert started.returncode == 0, started.stdout + started.stderr
    deadline = time.monotonic() + 200
    while len(list(output.glob("_state/sketch/units/*.json"))) < 3:
        assert time.monotonic() < deadline, ray_job(dashboard, "logs", "to-be-stopped").stdout[-3000:]
        time.sleep(0.02)
    # What `ray job stop` sends, without the seconds that its command takes to begin.
    request = urllib.request.Request(f"{dashboard}/api/jobs/to-be-stopped/stop", method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.loads(answer.read()) == {"stopped": True}
    while "was stopped" not in (status := ray_job(dashboard, "status", "to-be-stopped").stdout):
        assert time.monotonic() < deadline, status
    said = ray_job(dashboard, "logs", "to-be-stopped").stdout
    assert "finished units are kept, run the same command again to go on" in said
    ages = {p: p.stat().st_mtime_ns for p in output.glob("_state/sketch/units/*.json")}
    assert 3 <= len(ages) < 60
    done = submit(dashboard, "jobs/sketch.py", *arguments[1:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert {p: p.stat().st_mtime_ns for p in ages} == ages
    for table in ("sample", "sketches"):
        assert file_hashes(output / table) == file_hashes(submitted / table), table


def file_hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
