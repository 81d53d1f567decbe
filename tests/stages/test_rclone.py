"""Runs on a real S3 server, which checks signatures, equal those on a local disk to the byte."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3fs
from material import file_hashes
from rclone_s3 import rclone_environment, rclone_s3
from rich.console import Console

from influcoder_ray import pipeline
from influcoder_ray.cli import exit_status_of
from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages import cluster

pytestmark = pytest.mark.cluster
KEY, SECRET = "AKIATHEKEYOFRCLONE", "the-secret-of-the-real-server"
TABLES = {
    "sample": ("sample", "_state/sample/pool", "_state/sample/queries"),
    "sketch": ("sketches",),
    "distill": ("encoder",),
    "embed": ("embeddings", "query_embeddings"),
    "attribute": ("attributions", "group_influence"),
    "evaluate": ("_state/evaluate/pairs",),
}
COMMAND = """
import sys
from influcoder_ray import pipeline
from influcoder_ray.config import load_settings
pipeline.run(load_settings(sys.argv[1]), stages=sys.argv[2:] or pipeline.STAGES)
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder of a bucket, and the environment in which it is `s3://runs`."""
    bucket = tmp_path / "served/runs"
    bucket.mkdir(parents=True)
    with rclone_s3(bucket.parent, KEY, SECRET) as endpoint:
        yield bucket, rclone_environment(endpoint, KEY, SECRET)


def on_the_server(make_settings: Callable[..., PipelineSettings], bucket: Path) -> PipelineSettings:
    """The tiny project with all its inputs copied into the bucket, and its output there."""
    local = make_settings("unused")
    for data, name in ((local.corpus, "corpus.parquet"), (local.queries, "queries.parquet")):
        shutil.copy(data.path, bucket / name)
    for model, name in ((local.model, "lm"), (local.encoder, "encoder")):
        shutil.copytree(model.path, bucket / name)
    return make_settings(
        "s3://runs/out",
        corpus={"path": "s3://runs/corpus.parquet"},
        queries={"path": "s3://runs/queries.parquet"},
        model={"path": "s3://runs/lm"},
        encoder={"path": "s3://runs/encoder"},
    )


def run(settings: PipelineSettings, file: Path, environment: dict[str, str], *stages: str) -> str:
    """A run in a process of its own, with a Ray of its own; what it printed."""
    file.write_text(settings.to_yaml())
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(file), *stages],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def assert_same_tables(found: Path, expected: Path, *stages: str) -> None:
    for table in (table for stage in stages for table in TABLES[stage]):
        hashes = file_hashes(expected / table)
        assert hashes, table
        assert file_hashes(found / table) == hashes, table


def test_first_stages_on_a_real_server_equal_the_local_ones(
    make_settings: Callable[..., PipelineSettings],
    finished: PipelineSettings,
    served: tuple[Path, dict[str, str]],
    tmp_path: Path,
) -> None:
    """A mock server takes what a real one refuses: a checksum that it does not know, a wrong signature."""
    bucket, environment = served
    run(on_the_server(make_settings, bucket), tmp_path / "settings.yaml", environment, "sample", "sketch")
    assert_same_tables(bucket / "out", Path(finished.output), "sample", "sketch")


@pytest.mark.long
def test_a_whole_run_on_a_real_server_equals_the_local_one(
    make_settings: Callable[..., PipelineSettings],
    finished: PipelineSettings,
    served: tuple[Path, dict[str, str]],
    tmp_path: Path,
) -> None:
    """Training's checkpoints go by another client than the tables: either may meet a server it cannot use."""
    bucket, environment = served
    settings = on_the_server(make_settings, bucket)
    run(settings, tmp_path / "settings.yaml", environment)
    output, local = bucket / "out", Path(finished.output)
    assert_same_tables(output, local, *TABLES)
    assert b"</html>" in (output / "report.html").read_bytes()
    assert list(output.glob("_state/distill/train/*/checkpoint_*/best/model.safetensors"))
    names = {path.relative_to(local) for path in local.rglob("*.parquet")}
    assert {path.relative_to(output) for path in output.rglob("*.parquet")} == names
    assert "Nothing to do" in run(settings, tmp_path / "settings.yaml", environment)


def test_a_wrong_secret_is_refused_by_a_real_server_before_ray_is_joined(
    make_settings: Callable[..., PipelineSettings],
    served: tuple[Path, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A cluster that is scaled up for a run that cannot read costs money and then fails."""
    bucket, environment = served
    settings = on_the_server(make_settings, bucket)
    joined: list[object] = []
    monkeypatch.setattr(cluster, "connect", joined.append)
    wrong = "not-the-secret-of-the-server"
    for name, value in (environment | {"AWS_SECRET_ACCESS_KEY": wrong}).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    status = exit_status_of(lambda: pipeline.run(settings, console=Console(quiet=True)))
    s3fs.S3FileSystem.clear_instance_cache()
    said = capsys.readouterr().err
    assert (status, joined) == (2, [])
    assert said.count("\n") == 1
    assert "refuses the credentials (SignatureDoesNotMatch); set AWS_ACCESS_KEY_ID" in said
    assert not any(secret in said for secret in (KEY, SECRET, wrong))
    assert not (bucket / "out").exists()
