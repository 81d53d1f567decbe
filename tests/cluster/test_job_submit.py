"""The pipeline as a submitted job on a real Ray head."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
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
    """The address of a head that this test starts, and stops by the process it started."""
    # Short: Ray's sockets lie below it, and their paths are limited.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    port = free_port()
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    head = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
            *(f"--port={free_port()}", f"--dashboard-port={port}", f"--temp-dir={folder}"),
            "--object-store-memory=200000000",
        ],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, environment)
        yield address
    finally:
        head.terminate()
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, 9)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(address: str, environment: dict[str, str]) -> None:
    for _ in range(60):
        listed = subprocess.run(
            [RAY, "job", "list", "--address", address], env=environment, capture_output=True, timeout=60
        )
        if listed.returncode == 0:
            return
    raise AssertionError(f"no Ray head came up: {listed.stderr.decode()[-500:]}")


def submit(dashboard: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [
            *(RAY, "job", "submit", "--address", dashboard, "--working-dir", str(REPOSITORY), "--"),
            *("python", *arguments),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_a_submitted_pipeline_leaves_every_table_and_its_exit_status(
    dashboard: str, tmp_path: Path, causal_lm_folder: Path, encoder_folder: Path
) -> None:
    """What works in one process can fail as a job: other working folder, other workers, no terminal."""
    generator = np.random.default_rng(0)
    words = ["bread", "flour", "river", "stone", "paris", "seven", "eight", "loss"]
    for name, rows in (("corpus", 60), ("queries", 20)):
        texts = [[" ".join(generator.choice(words, 6)) for _ in range(rows)] for _ in range(2)]
        table = pa.table(
            {"id": [f"{name}{i}" for i in range(rows)], "prompt": texts[0], "response": texts[1]}
        )
        pq.write_table(table, tmp_path / f"{name}.parquet")
    columns = {"id": "id", "prompt": "prompt", "response": "response"}
    fields = {
        "output": str(tmp_path / "out"),
        "corpus": {"path": str(tmp_path / "corpus.parquet"), "columns": columns},
        "queries": {"path": str(tmp_path / "queries.parquet"), "columns": columns},
        "model": {"path": str(causal_lm_folder), "max_tokens": 32},
        "encoder": {"path": str(encoder_folder), "max_tokens": 48},
        "sketch": {"width": 1024},
        "sample": {"pool": 40},
        "distill": {"epochs": 1},
        "evaluate": {"fidelity_examples": 4},
        "workers": {stage: {"cpus": 1} for stage in ("sketch", "embed", "distill", "evaluate")},
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(fields))
    done = submit(dashboard, "jobs/run_pipeline.py", "--config", str(tmp_path / "pipeline.yaml"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert pq.read_table(tmp_path / "out/embeddings").num_rows == 60
    assert pq.read_table(tmp_path / "out/attributions").num_rows == 20 * 20
    assert (tmp_path / "out/report.html").exists()

    again = submit(dashboard, "jobs/sketch.py", "--config", str(tmp_path / "pipeline.yaml"))
    assert again.returncode == 0
    assert "Nothing to do" in again.stdout

    refused = submit(
        dashboard, "jobs/sketch.py", "--config", str(tmp_path / "pipeline.yaml"), "--set", "sketch.widht=1024"
    )
    assert refused.returncode != 0
    assert "sketch.widht: unknown key" in refused.stdout
