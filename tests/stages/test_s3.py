"""Inputs and all outputs on an object store, served on this machine."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from influcoder_ray.config import PipelineSettings

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_a_whole_run_from_s3_to_s3_and_a_second_one_that_does_nothing(
    endpoint: str, make_settings: Callable[..., PipelineSettings], tmp_path: Path
) -> None:
    """A stage that writes to a local path, or renames on S3, works on a laptop and fails on a cluster."""
    credentials = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }
    bucket = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=endpoint, use_listings_cache=False)
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
            env=os.environ | credentials,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    run()
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
    secrets = (tmp_path / "settings.yaml").read_text() + bucket.cat_file(
        "attribution/run/settings.yaml"
    ).decode()
    assert "AWS" not in secrets
    assert "Nothing to do" in run()
