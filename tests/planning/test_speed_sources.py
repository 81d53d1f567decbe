"""Speeds come from a card, a finished run or this machine, and say which."""

import json
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from influcoder_ray import cli, planning
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.planning import SpeedSource, calibration
from influcoder_ray.planning.arithmetic import estimate
from influcoder_ray.planning.calibration import calibrate, worker_start_seconds
from influcoder_ray.planning.sources import card_speeds, measured_speeds
from influcoder_ray.planning.speed import Speeds
from influcoder_ray.planning.work import Work

Make = Callable[..., PipelineSettings]
OF_CPU = Speeds({"scan": 1000.0, "search": 1e9}, rests_on=("the CPU",))
WORKS = [
    Work("sample", units=9, rows=800, shared={"scan": 800.0}, shared_units=8),
    Work("sketch", units=4, rows=40, tokens=4000, shared={"gradients": 4e9}, shared_units=4),
    Work("distill", units=2, tokens=400, shared={"encoder": 6e6}),
    Work("embed", units=8, rows=800, tokens=8000, shared={"encoder": 8e6}, shared_units=8),
    Work("attribute", units=9, rows=800, shared={"search": 8e5}, shared_units=8),
]
TOTALS: dict[str, Any] = {
    "sample": {"compute_seconds": 8.0, "wall_seconds": 3.0, "rows_in": 800},
    "sketch": {"compute_seconds": 80.0, "wall_seconds": 90.0, "rows_in": 40, "tokens": 5000},
    "distill": {"compute_seconds": 60.0, "wall_seconds": 61.0, "rows_in": 0},
    "embed": {"compute_seconds": 16.0, "wall_seconds": 20.0, "rows_in": 800, "tokens": 8000},
    "attribute": {"compute_seconds": 4.0, "wall_seconds": 5.0, "rows_in": 800},
    "rerank": None,
}


def test_a_card_does_a_share_of_its_peak_in_the_numbers_of_the_settings(make_plan_settings: Make) -> None:
    """Prevents a plan for float32 by the peak of bfloat16, fifteen times as high."""
    settings = make_plan_settings()
    assumed = card_speeds(settings, "H200", OF_CPU)
    assert assumed.per_second == {
        "scan": 1000.0,
        "search": 1e9,
        "gradients": pytest.approx(0.3 * 67e12),
        "encoder": pytest.approx(0.1 * 989.4e12),
        "training": pytest.approx(0.1 * 989.4e12),
    }
    assert "gradients: 30% (assumed) of the 67.0 TFLOP/s of NVIDIA H200 in float32" in assumed.rests_on
    assert "the CPU" in assumed.rests_on
    lower = make_plan_settings(model={"dtype": "bfloat16"}, encoder={"dtype": "float32"})
    given = card_speeds(lower, "H200", OF_CPU, utilisation=0.5)
    assert given.per_second["gradients"] == pytest.approx(0.5 * 989.4e12)
    assert given.per_second["encoder"] == pytest.approx(0.5 * 67e12)
    assert any("50% (as given)" in sentence for sentence in given.rests_on)


def test_speeds_of_a_finished_run_give_its_times_back(make_plan_settings: Make) -> None:
    """Prevents a stage that is measured and then estimated to take something else."""
    settings = make_plan_settings(workers={"sketch": {"max": 1}, "embed": {"max": 1}})
    speeds = measured_speeds("run", settings, WORKS, TOTALS)
    # By the tokens that there were, of which a quarter more came than had been planned.
    assert speeds.per_second["gradients"] == pytest.approx(4e9 * 5000 / 4000 / 80)
    assert speeds.per_second["encoder"] == pytest.approx(8e6 / 16)
    assert speeds.per_second["scan"] == pytest.approx(100)
    found = estimate(WORKS, speeds, workers=[1, 3])
    seconds = {stage.work.stage: stage for stage in found.stages}
    for stage in ("distill", "embed", "attribute"):
        assert seconds[stage].wall_seconds[1] == pytest.approx(TOTALS[stage]["wall_seconds"])
    assert seconds["sketch"].wall_seconds[1] == pytest.approx(80 * 4 / 5 + 10)
    # Eight seconds of work in three: no fewer than three workers did that.
    assert seconds["sample"].wall_seconds[3] == pytest.approx(3.0, rel=0.15)
    assert speeds.start_seconds["sample"] == pytest.approx(3 - 8 / 3)
    assert "run" in speeds.rests_on[0]


def test_a_run_without_a_stage_that_speeds_are_measured_on_is_refused(make_plan_settings: Make) -> None:
    """Prevents an infinite speed from becoming a stage that takes no time."""
    with pytest.raises(UserError, match=r"^--measured: run has not finished embed; give a run that has$"):
        measured_speeds("run", make_plan_settings(), WORKS, {**TOTALS, "embed": None})


def test_calibration_measures_every_kind_of_work_and_leaves_threads_alone(make_plan_settings: Make) -> None:
    """Prevents a speed that no clock has seen."""
    settings = make_plan_settings(workers={"sketch": {"cpus": 2}})
    counts, threads = planning.count(settings), torch.get_num_threads()
    found = calibrate(settings, counts.corpus, queries=40, dimensions=34, seconds=0.2)
    assert set(found.per_second) == {"scan", "gradients", "encoder", "training", "search"}
    assert all(speed > 0 for speed in found.per_second.values())
    assert torch.get_num_threads() == threads
    said = " ".join(found.rests_on)
    assert all(f"{kind}: " in said for kind in found.per_second)
    # Two pools start one after the other, and load nothing.
    assert (found.start_seconds["sample"], found.start_seconds["attribute"]) == (2, 1)
    # Both models are loaded for what needs both.
    assert found.start_seconds["evaluate"] > max(found.start_seconds[s] for s in ("sketch", "embed"))


def test_a_workers_start_imports_what_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a start that fails at once, and is taken to be quick."""
    for name in calibration._IMPORTS.removeprefix("import ").split(", "):
        assert find_spec(name) is not None
    monkeypatch.setattr(calibration, "_IMPORTS", "import no_such_module")
    with pytest.raises(subprocess.CalledProcessError):
        worker_start_seconds()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SpeedSource(card="B200"), r"^--card: 'B200' is not known; known are NVIDIA A100"),
        (SpeedSource(card="H100", calibrate=True), r"^--calibrate: --card is given as well"),
        (SpeedSource(card="H100", measured="run"), r"^--measured: --card is given as well"),
        (SpeedSource(utilisation=0.4), r"^--utilisation: .* give --card as well$"),
    ],
)
def test_a_source_of_speeds_that_is_none_is_refused(
    source: SpeedSource, message: str, make_plan_settings: Make
) -> None:
    """Prevents one option from being left out in silence."""
    with pytest.raises(UserError, match=message):
        planning.check(make_plan_settings(), source)


def test_weights_that_lie_elsewhere_are_not_fetched_unless_asked_for(make_plan_settings: Make) -> None:
    """Prevents a plan that begins by fetching a hundred gigabytes."""
    settings = make_plan_settings(model={"path": "s3://bucket/model"})
    with pytest.raises(UserError, match=r"^model\.path: s3://bucket/model is not on this machine.* --card"):
        planning.check(settings, SpeedSource())
    for source in (SpeedSource(card="L4"), SpeedSource(calibrate=True), SpeedSource(measured="run")):
        planning.check(settings, source)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no settings.yaml"),
        ({"settings.yaml": "a: 1"}, "holds no run_summary.json"),
        ({"settings.yaml": "a: 1", "run_summary.json": "{"}, "cannot be read"),
        ({"settings.yaml": "a: 1", "run_summary.json": "[]"}, "cannot be read"),
        ({"settings.yaml": "1", "run_summary.json": '{"stages": {}}'}, "is no run"),
        ({"settings.yaml": "a: 1", "run_summary.json": '{"stages": {}}'}, "settings.yaml: output: missing"),
    ],
)
def test_a_folder_that_holds_no_run_is_refused(files: dict[str, str], message: str, tmp_path: Path) -> None:
    """Prevents a traceback for a folder that was mistyped."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        planning.sources.finished_run(str(tmp_path))


def planned(settings: PipelineSettings, folder: Path, *options: str) -> int:
    (folder / "pipeline.yaml").write_text(settings.to_yaml())
    arguments = ["plan", str(folder / "pipeline.yaml"), "--calibration-seconds", "0.1", *options]
    return cli.exit_status_of(lambda: cli.app(arguments, standalone_mode=False))


def test_the_command_prints_a_table_and_writes_the_same_and_nothing_else(
    make_plan_settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents figures in the file that differ from those on the screen, and a plan that leaves a run."""
    settings = make_plan_settings(output=str(tmp_path / "out"))
    file = tmp_path / "plan.json"
    options = ("--card", "L4", "--workers", "16,1", "--price", "1.5", "--json", str(file))
    assert planned(settings, tmp_path, *options) == 0
    printed = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert list(found["stages"]) == ["sample", "sketch", "distill", "embed", "attribute", "evaluate"]
    assert list(found["wall_seconds"]) == ["1", "16"]
    assert found["cost"] == pytest.approx(1.5 * found["device_hours"])
    for stage, figures in found["stages"].items():
        (line,) = [text for text in printed.splitlines() if text.startswith(f"{stage} ")]
        assert line.split()[1] == f"{figures['units']:,}"
    assert "on 16" in printed
    assert all(sentence in printed for sentence in found["rests_on"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0,2"], "--workers: '0,2' is no list of numbers from 1 on"),
        (["--workers", "many"], "--workers: 'many' is no list"),
        (["--card", "B200"], "--card: 'B200' is not known"),
        (["--json", "nowhere/at/all.json"], "--json: nowhere/at/all.json lies in no folder"),
    ],
)
def test_an_option_that_cannot_be_used_ends_in_one_line(
    options: list[str],
    message: str,
    make_plan_settings: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a traceback, and a minute of measuring before a typing error is found."""
    assert planned(make_plan_settings(), tmp_path, *options) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"influcoder-ray: {message}")
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out.strip() == ""
