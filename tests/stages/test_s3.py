"""Inputs and all outputs on an object store, served on this machine."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs
from faulty_s3 import FaultyS3, Injury
from material import file_hashes
from moto.server import ThreadedMotoServer
from rich.console import Console

from influcoder_ray import pipeline
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.stages import cluster

pytestmark = pytest.mark.cluster
KEY, SECRET = "AKIATHEKEYOFTHESTAGES", "the-secret-of-the-test-server"


def environment(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def ray_logs() -> Iterator[Path]:
    """Where a Ray that is started here keeps its logs; its sockets' names allow for no long path."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def plain_filesystem(endpoint: str) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(key="plain", secret="plain", endpoint_url=endpoint, use_listings_cache=False)


@pytest.mark.long
def test_a_whole_run_from_s3_to_s3_and_a_second_one_that_does_nothing(
    endpoint: str, make_settings: Callable[..., PipelineSettings], ray_logs: Path, tmp_path: Path
) -> None:
    """A stage that writes to a local path, or renames on S3, works on a laptop and fails on a cluster.

    A key that stands in a table, a manifest or a log is known to all who may read those.
    """
    bucket = plain_filesystem(endpoint)
    bucket.mkdir("attribution")
    local = make_settings("unused")
    bucket.put(local.corpus.path, "attribution/data/corpus.parquet")
    bucket.put(local.queries.path, "attribution/data/queries.parquet")
    bucket.put(local.model.path, "attribution/models/lm", recursive=True)
    settings = make_settings(
        "s3://attribution/run",
        corpus={"path": "s3://attribution/data/corpus.parquet"},
        queries={"path": "s3://attribution/data/queries.parquet"},
        model={"path": "s3://attribution/models/lm"},
        rerank={"candidates": 3},
    )
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())

    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "influcoder_ray.cli", "run", str(tmp_path / "settings.yaml")],
            env=os.environ | environment(endpoint) | {"RAY_TMPDIR": str(ray_logs)},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    said = run()
    counts = {
        table: sum(
            pq.read_table(path, filesystem=bucket).num_rows
            for path in bucket.glob(f"attribution/run/{table}/*.parquet")
        )
        for table in (
            "embeddings",
            "attributions",
            "reranked",
            "group_influence",
            "sketches/pool",
            "sketches/queries",
        )
    }
    assert counts == {
        "embeddings": 120,
        "attributions": 24 * 7,
        "reranked": 24 * 3,
        "group_influence": 120,
        "sketches/pool": 60,
        "sketches/queries": 24,
    }
    assert b"</html>" in bucket.cat_file("attribution/run/report.html")
    assert bucket.exists("attribution/run/encoder/model.safetensors")
    left = {name: bucket.cat_file(name) for name in bucket.find("attribution/run")}
    left |= {str(path): path.read_bytes() for path in ray_logs.rglob("*") if path.is_file()}
    assert "attribution/run/settings.yaml" in left
    assert any(name.startswith("attribution/run/_state/distill/train/") for name in left)
    assert any("worker-" in name and name.endswith(".err") for name in left)
    again = run()
    assert "Nothing to do" in again
    left |= {"output of the command": (said + again).encode()}
    assert [name for name, data in left.items() if KEY.encode() in data or SECRET.encode() in data] == []


@pytest.mark.long
def test_a_stage_on_s3_that_is_busy_and_cut_off_leaves_the_undisturbed_tables(
    endpoint: str, make_settings: Callable[..., PipelineSettings], local_ray: None, tmp_path: Path
) -> None:
    """A spell of SlowDown, or a line that breaks in a worker's hands, must cost time and nothing else."""
    sample = {"pool": 60, "rows_per_unit": 20}
    undisturbed = make_settings(tmp_path / "undisturbed", sample=sample)
    pipeline.run(undisturbed, stages=("sample",), console=Console(quiet=True))
    bucket = plain_filesystem(endpoint)
    bucket.mkdir("faulty")
    bucket.put(undisturbed.corpus.path, "faulty/corpus.parquet")
    settings = make_settings("s3://faulty/run", corpus={"path": "s3://faulty/corpus.parquet"}, sample=sample)
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    injuries = (
        *(Injury("cut read", "GET", r"corpus\.parquet") for _ in range(2)),
        Injury("cut upload", "PUT", r"_state/sample/pool/"),
        Injury("lost answer", "PUT", r"run/sample/pool/"),
        Injury("silence", "PUT", r"_state/sample/units/"),
        Injury("busy", "GET", r"list-type=2"),
    )
    with FaultyS3(endpoint, injuries=injuries, busy_share=0.1, seed=3) as faulty:
        impatient = {"FSSPEC_S3": json.dumps({"config_kwargs": {"read_timeout": 2}})}
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "influcoder_ray.cli",
                "sample",
                "--config",
                str(tmp_path / "settings.yaml"),
            ],
            env=os.environ | environment(faulty.endpoint) | impatient,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        assert not faulty.outstanding
        assert faulty.injured["slow down"] >= 5
        print(f"faults: {dict(faulty.injured)} of {faulty.requests} requests")
    for table in ("sample", "_state/sample/pool", "_state/sample/queries"):
        bucket.get(f"faulty/run/{table}", str(tmp_path / "disturbed" / table), recursive=True)
        assert file_hashes(tmp_path / "disturbed" / table) == file_hashes(tmp_path / "undisturbed" / table)


def test_a_wrong_bucket_ends_a_run_before_ray_is_joined(
    endpoint: str, make_settings: Callable[..., PipelineSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that is scaled up for a run that cannot write costs money and then fails."""
    joined: list[object] = []
    monkeypatch.setattr(cluster, "connect", joined.append)
    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match=r"^output: s3://absent/run: there is no bucket 'absent'"):
        pipeline.run(make_settings("s3://absent/run"), console=Console(quiet=True))
    assert joined == []
    s3fs.S3FileSystem.clear_instance_cache()
