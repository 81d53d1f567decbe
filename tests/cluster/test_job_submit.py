"""The pipeline as a submitted job on a real Ray head."""

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray_nodes import RayNodes, file_hashes, ray_job, submit

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(1200)]


def test_a_submitted_pipeline_leaves_every_table_and_its_exit_status(
    whole_cluster: RayNodes, submitted: Path
) -> None:
    """What works in one process can fail as a job: other working folder, other workers, no terminal."""
    dashboard = whole_cluster.dashboard
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
    whole_cluster: RayNodes, submitted: Path, make_file: Callable[[Path], Path], tmp_path: Path
) -> None:
    """`ray job stop` gives a driver three seconds: what it had done must not have to be done again."""
    dashboard = whole_cluster.dashboard
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
