"""A run can be watched while it goes on: progress, then the report, and nothing is written by looking."""

import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from influcoder_ray import cli, pipeline
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.report.render import render_html
from influcoder_ray.stages.watching import WatchedRun
from influcoder_ray.stages.work.page import contents


def _stages(settings: PipelineSettings) -> list[str]:
    return [stage for stage in pipeline.wanted_stages(settings) if stage != "report"]


def _copied(settings: PipelineSettings, folder: Path) -> PipelineSettings:
    shutil.copytree(settings.output, folder)
    return settings.model_copy(update={"output": str(folder)})


def test_a_run_is_followed_from_its_first_unit_to_its_report(
    finished: PipelineSettings, tmp_path: Path
) -> None:
    """Prevents a person from having to wait, or to reload by guess, for what is already there."""
    there, later = _copied(finished, tmp_path / "run"), tmp_path / "later"
    settings = finished.model_copy(update={"output": str(later)})
    watched = WatchedRun(settings, _stages(settings))
    assert "0 of 6 stages are done" in watched.html()
    state = Path(there.output) / "_state"
    later.mkdir()
    for done, stage in enumerate(_stages(settings), 1):
        for table in ("sample", "sketches", "encoder", "embeddings", "query_embeddings", "attributions"):
            shutil.copytree(Path(there.output) / table, later / table, dirs_exist_ok=True)
        (later / "_state" / stage).mkdir(parents=True)
        shutil.copytree(state / stage / "units", later / "_state" / stage / "units")
        shutil.copy(state / stage / "fingerprint.json", later / "_state" / stage / "fingerprint.json")
        watched.key()
        assert "under way" in watched.html()
        shutil.copytree(Path(there.output), later, dirs_exist_ok=True) if done == 6 else shutil.copy(
            state / stage / "totals.json", later / "_state" / stage / "totals.json"
        )
        key = watched.key()
        if done < 6:
            assert f"{done} of 6 stages are done" in watched.html()
            assert watched.key() != key, "a page that says how long nothing has happened must be made anew"
    assert watched.key() == key
    page = watched.html()
    assert page == render_html(contents(settings))
    assert 'http-equiv="refresh"' not in page


def test_what_keeps_the_report_away_is_told_on_the_page(finished: PipelineSettings, tmp_path: Path) -> None:
    """Prevents "6 of 6 stages are done" and no report, with no word of why."""
    settings = _copied(finished, tmp_path / "run")
    moved = settings.corpus.model_copy(update={"path": str(tmp_path / "moved" / "corpus.parquet")})
    settings = settings.model_copy(update={"corpus": moved})
    watched = WatchedRun(settings, _stages(settings))
    key = watched.key()
    assert "corpus.path" in watched.html()
    assert watched.key() != key
    Path(moved.path).parent.mkdir()
    shutil.copy(finished.corpus.path, moved.path)
    assert watched.html() == render_html(contents(settings))
    assert watched.key() == key
    shutil.rmtree(Path(settings.output) / "_state" / "embed")
    watched.key()
    assert "5 of 6 stages are done" in watched.html()


def test_the_command_serves_a_folder_and_ends_on_ctrl_c(finished: PipelineSettings, tmp_path: Path) -> None:
    """Prevents a server that starts Ray, changes the folder that it shows, or ends in an error."""
    file = tmp_path / "settings.yaml"
    file.write_text(finished.to_yaml())
    before = _listing(Path(finished.output))
    # Of a process in the background a shell makes one that ignores Ctrl-C; this one is to hear it.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from influcoder_ray import cli; status = cli.exit_status_of(lambda: cli.app(sys.argv[1:])); "
        "sys.exit(9 if 'ray' in sys.modules else status)"
    )
    command = ["report", "--config", str(file), "--serve", "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        with urllib.request.urlopen(address, timeout=60) as answer:
            page = answer.read().decode()
        assert page == render_html(contents(finished))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert _listing(Path(finished.output)) == before


def _listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_a_port_without_serving_is_refused(finished: PipelineSettings, tmp_path: Path) -> None:
    """Prevents a person from waiting for a server that was never asked for."""
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(finished.model_dump(mode="json")))
    result = CliRunner().invoke(cli.app, ["report", "--config", str(file), "--port", "8000"])
    assert isinstance(result.exception, UserError)
    assert "--port: goes with --serve" in str(result.exception)
    with pytest.raises(UserError, match="goes with --serve"):
        raise result.exception
