"""A plan of a run that was then made says what the run came to."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from influcoder_ray import planning
from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.specs import HISTORY
from influcoder_ray.planning import SpeedSource
from influcoder_ray.tables.state import StageState

PLANNED = ("sample", "sketch", "distill", "embed", "attribute", "evaluate")


@pytest.fixture(scope="module")
def totals(finished: PipelineSettings) -> dict[str, Any]:
    stages: dict[str, Any] = json.loads((finished.root / "run_summary.json").read_bytes())["stages"]
    return stages


def written_bytes(settings: PipelineSettings, stage: str) -> int:
    """What a stage's manifests vouch for, quarantine left out."""
    manifests = StageState(settings.root, stage, ("",)).root / "_state" / stage / "units"
    files = [
        file
        for path in Path(manifests.path).glob("*.json")
        for file in json.loads(path.read_bytes())["files"]
        if file["table"] != "quarantine" and file["path"].rsplit(".", 1)[-1] != "html"
    ]
    return sum(file["size_bytes"] for file in files)


def test_units_rows_and_tokens_are_those_that_the_run_had(
    finished: PipelineSettings, totals: dict[str, Any]
) -> None:
    """Prevents a plan that has lost sight of what the stages do."""
    works = {work.stage: work for work in planning.count(finished).works()}
    assert tuple(works) == PLANNED
    for stage, work in works.items():
        assert work.units == totals[stage]["units"], stage
        assert work.rows == totals[stage]["rows_in"], stage
    for stage in ("sketch", "embed"):
        assert works[stage].tokens == pytest.approx(totals[stage]["tokens"], rel=0.1)


def test_bytes_written_are_within_a_quarter_of_those_that_lie_there(finished: PipelineSettings) -> None:
    """Prevents a disk that is full long before a run is done."""
    works = {work.stage: work for work in planning.count(finished).works()}
    history = json.loads((finished.root / "encoder" / HISTORY).read_bytes())
    # Else the encoder was kept as it is, without a head, and its vectors have another width.
    assert history["chosen_epoch"] > 0
    for stage in ("sample", "sketch", "distill", "embed"):
        assert works[stage].bytes_written == pytest.approx(written_bytes(finished, stage), rel=0.25), stage
    planned = sum(work.bytes_written for work in works.values())
    assert planned == pytest.approx(sum(written_bytes(finished, stage) for stage in PLANNED), rel=0.25)


def test_by_its_own_speeds_a_run_takes_what_it_took(
    finished: PipelineSettings, totals: dict[str, Any]
) -> None:
    """Prevents measured speeds that are not those of the work that was measured."""
    found = planning.plan(
        finished,
        SpeedSource(measured=finished.output),
        workers=[1, 4],
        price_per_hour=2.0,
        console=Console(quiet=True),
    )
    for stage in PLANNED:
        took = totals[stage]["wall_seconds"]
        assert found["stages"][stage]["wall_seconds"]["1"] == pytest.approx(took, rel=0.25), stage
        assert found["stages"][stage]["wall_seconds"]["4"] <= took * 1.25
    total = sum(totals[stage]["wall_seconds"] for stage in PLANNED)
    assert found["wall_seconds"]["1"] == pytest.approx(total, rel=0.25)
    assert found["cost"] == pytest.approx(2.0 * found["device_hours"])
