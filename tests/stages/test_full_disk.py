"""A disk that is full stops a run in one line and spoils nothing."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from material import file_hashes
from rich.console import Console

from influcoder_ray import pipeline
from influcoder_ray.cli import exit_status_of
from influcoder_ray.config import PipelineSettings

pytestmark = [pytest.mark.cluster, pytest.mark.long]
QUIET = Console(quiet=True)
TABLES = ("embeddings", "query_embeddings")
STAGES = ("sample", "sketch", "distill", "embed")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and _mount("size=16m", "tmpfs", str(folder))
    if not mounted:
        pytest.skip("a small disk in memory takes the right to mount one")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(options: str, *what: str) -> bool:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, *what], capture_output=True).returncode == 0


def _used_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_disk_that_fills_up_amid_a_stage_is_named_and_with_room_the_run_goes_on_to_the_same_bytes(
    make_settings: Callable[..., PipelineSettings],
    finished: PipelineSettings,
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A traceback, a truncated shard that is read as data, or a stage begun anew would each cost a night."""
    before = Path(finished.output)
    output = small_disk / "run"
    for name in ("sample", "sketches", "encoder", *(f"_state/{stage}" for stage in STAGES[:-1])):
        shutil.copytree(before / name, output / name, ignore=shutil.ignore_patterns("train"))
    settings = make_settings(output)
    # Room for the stage's fingerprint and for some of its shards, each of 2 to 4 pages, with its manifest.
    assert _mount(f"remount,size={_used_bytes(small_disk) + 40960}", "tmpfs", str(small_disk))
    status = exit_status_of(lambda: pipeline.run(settings, stages=STAGES, console=QUIET))
    said = capsys.readouterr().err
    assert status == 1
    assert said.count("\n") == 1
    assert f"{output}/" in said
    assert "there is no room for it on the disk (No space left on device)" in said
    units = len(list(before.glob("_state/embed/units/*.json")))
    done = len(list(output.glob("_state/embed/units/*.json")))
    assert 1 <= done < units
    assert not pipeline.status(settings)["embed"]
    assert [path.name for path in output.rglob(".*")] == []

    assert _mount("remount,size=16m", "tmpfs", str(small_disk))
    assert exit_status_of(lambda: pipeline.run(settings, stages=STAGES, console=QUIET)) == 0
    for table in TABLES:
        assert file_hashes(output / table) == file_hashes(before / table)
