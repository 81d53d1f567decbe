"""The validate stage: fine-tunes once each, the same whatever befell the run, and more of them later."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from material import file_hashes
from rich.console import Console

from influcoder_ray import cli, pipeline
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.evaluation.datamodelling import datamodelling_rho
from influcoder_ray.retraining.designs import Design
from influcoder_ray.stages import validate
from influcoder_ray.stages.work.validating import FineTuneWork, Material
from influcoder_ray.tables import schemas

QUIET = Console(quiet=True)
FEW: dict[str, Any] = {"steps": 3, "batch_size": 2, "learning_rate": 0.02, "rank": 2, "queries": 2}


def losses_of(settings: PipelineSettings) -> list[dict[str, Any]]:
    table = validate.state(settings.root).read(validate.LOSSES, schemas.VALIDATION_LOSSES)
    return [dict(row) for row in table.to_pylist()]


def validation_of(settings: PipelineSettings) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((settings.root / validate.VALIDATION).read_bytes())
    return found


def here(plan: Any, fingerprint: Any, *_: Any) -> dict[str, Any]:
    """The plan's units that are not done, one after the other in this process: no worker has to start."""
    plan.state.begin(fingerprint)
    work: FineTuneWork = plan.work(**plan.arguments)
    done = plan.state.manifests()
    for unit in plan.units:
        if unit.unit_id not in done:
            done[unit.unit_id] = plan.state.commit(
                unit.unit_id, work.process(unit, work.read(unit), lambda _: None), 0.0
            )
    return {unit.unit_id: done[unit.unit_id] for unit in plan.units}


@pytest.fixture(scope="module")
def validated(
    finished: PipelineSettings,
    make_settings: Callable[..., PipelineSettings],
    tmp_path_factory: pytest.TempPathFactory,
) -> PipelineSettings:
    """The finished run, validated by workers of Ray. Read only."""
    output = tmp_path_factory.mktemp("validated") / "run"
    shutil.copytree(finished.output, output)
    settings = make_settings(output, validate=FEW | {"seeds": 2, "subsets": 3})
    pipeline.run(settings, stages=("validate",), console=QUIET)
    return settings


@pytest.fixture
def without_workers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fine-tunes happen in this process; the names of those that are done are added to this list."""
    from influcoder_ray.stages import units_on_ray

    names: list[str] = []
    process = FineTuneWork.process

    def noted(work: FineTuneWork, unit: Any, *rest: Any) -> Any:
        names.append(unit.piece.relative)
        return process(work, unit, *rest)

    monkeypatch.setattr(FineTuneWork, "process", noted)
    monkeypatch.setattr(units_on_ray, "run_units", here)
    return names


def test_every_fine_tune_has_the_loss_of_every_held_out_query(validated: PipelineSettings) -> None:
    """Prevents figures out of fewer fine-tunes than were asked for, or of queries that chose the examples."""
    rows = losses_of(validated)
    designs = validate.designs(validated)
    material = Material(validated, validate.state(validated.root))
    held_out = {query.example_id for query in material.held_out}
    assert len(held_out) == 2
    found = {(Design(r["kind"], r["by"], r["draw"], r["seed"]), r["query_id"]) for r in rows}
    assert found == {(design, query_id) for design in designs for query_id in held_out}
    assert len(rows) == len(found)
    queries = validate.state(validated.root).read(validate.QUERIES, schemas.EXAMPLES).to_pylist()
    assert {q["example_id"] for q in queries if q["split"] == "choosing"}.isdisjoint(held_out)
    test = {
        side: {r["example_id"] for r in _sketches(validated, side) if r["split"] == "test"}
        for side in ("pool", "queries")
    }
    assert {example.example_id for example in material.pool} == test["pool"]
    assert {q["example_id"] for q in queries} == test["queries"]
    sizes = {row["part"]: row["examples"] for row in rows}
    assert sizes["before"] == 0
    assert sizes["select-encoder"] == sizes["select-random-0"] == 2
    assert sizes["remove-exact"] == sizes["remove-random-1"] == len(material.pool) - 2
    moved = {row["loss"] for row in rows if row["query_id"] == min(held_out)}
    assert len(moved) > 10


def test_the_file_says_what_the_table_holds(validated: PipelineSettings) -> None:
    """Prevents figures that nobody can derive from the losses beside them."""
    rows, found = losses_of(validated), validation_of(validated)
    mean = {
        (kind, by, seed): np.mean([r["loss"] for r in rows if (r["kind"], r["by"], r["seed"]) == key])
        for key in {(r["kind"], r["by"], r["seed"]) for r in rows}
        for kind, by, seed in [key]
    }
    for kind in ("select", "remove"):
        assert list(found[kind]) == ["encoder", "exact", "random"]
        for method, arm in found[kind].items():
            assert arm["loss"]["each"] == pytest.approx([mean[kind, method, seed] for seed in (0, 1)])
        against = found[kind]["encoder"]["against_random"]["each"]
        assert against == pytest.approx(
            [mean[kind, "encoder", s] - mean[kind, "random", s] for s in (0, 1)], abs=1e-6
        )
    assert found["before"]["loss"]["mean"] == pytest.approx(mean["before", "", 0])
    assert found["whole"]["loss"]["each"] == pytest.approx([mean["whole", "", seed] for seed in (0, 1)])
    assert (found["seeds"], found["subsets"]) == ([0, 1], 3)
    material = Material(validated, validate.state(validated.root))
    ids = [query.example_id for query in material.held_out]
    losses = np.array(
        [
            [r["loss"] for q in ids for r in rows if (r["part"], r["query_id"]) == (f"subset-{d}", q)]
            for d in range(3)
        ]
    )
    chosen = np.zeros((3, len(material.pool)), dtype=np.bool_)
    for draw in range(3):
        chosen[draw, material.members(Design("subset", draw=draw))] = True
    assert list(found["datamodelling"]) == ["encoder", "exact", "untrained_encoder", "tfidf", "random"]
    expected = datamodelling_rho(material.scores["exact"], chosen, losses).mean()
    assert found["datamodelling"]["exact"]["mean"] == pytest.approx(expected)


def test_the_encoders_scores_are_those_that_are_evaluated(validated: PipelineSettings) -> None:
    """Prevents a proof of other scores than those which the run hands out."""
    table = validate.state(validated.root).read(validate.SCORES, schemas.VALIDATION_SCORES).to_pylist()
    pairs = pq.read_table(Path(validated.output) / "_state/evaluate/pairs").to_pylist()
    evaluated = {(row["query_id"], row["example_id"]): row for row in pairs}
    assert len(table) == len(evaluated)
    for row in table:
        for name in ("encoder", "exact", "untrained_encoder"):
            assert row[name] == pytest.approx(evaluated[row["query_id"], row["example_id"]][name], abs=1e-5)


def test_a_run_that_lost_some_is_mended_to_the_same_bytes(
    validated: PipelineSettings,
    make_settings: Callable[..., PipelineSettings],
    tmp_path: Path,
    without_workers: list[str],
) -> None:
    """Prevents a killed run from starting anew, and figures that depend on where it was killed."""
    shutil.copytree(validated.output, tmp_path / "run")
    settings = make_settings(tmp_path / "run", validate=FEW | {"seeds": 2, "subsets": 3})
    tables = (validate.VALIDATION, validate.LOSSES)
    before = {name: _hashes(tmp_path / "run" / name) for name in tables}
    parts = sorted((tmp_path / "run/validation").iterdir())
    lost = [pq.read_table(path).slice(0, 1).to_pylist()[0] for path in parts[::5]]
    for path in (*parts[::5], tmp_path / "run/validation.json"):
        path.unlink()
    assert not pipeline.status(settings)["validate"]
    pipeline.run(settings, stages=("validate",), console=QUIET)
    redone = {Design(r["kind"], r["by"], r["draw"], r["seed"]).name for r in lost}
    assert set(without_workers) == redone
    assert len(without_workers) == len(parts[::5])
    assert {name: _hashes(tmp_path / "run" / name) for name in tables} == before


def test_more_seeds_and_subsets_are_added_to_what_is_there(
    validated: PipelineSettings,
    make_settings: Callable[..., PipelineSettings],
    tmp_path: Path,
    without_workers: list[str],
) -> None:
    """Prevents finished fine-tunes from being paid for again when somebody wants to be surer."""
    shutil.copytree(validated.output, tmp_path / "run")
    settings = make_settings(tmp_path / "run", validate=FEW | {"seeds": 3, "subsets": 4})
    before = _hashes(tmp_path / "run/validation")
    pipeline.run(settings, stages=("validate",), console=QUIET)
    after = _hashes(tmp_path / "run/validation")
    assert before.items() <= after.items()
    assert set(without_workers) == {
        "whole-seed2",
        *(f"{kind}-{by}-seed2" for kind in ("select", "remove") for by in ("encoder", "exact", "random-2")),
        "subset-3-seed0",
    }
    found = validation_of(settings)
    assert found["seeds"] == [0, 1, 2]
    assert len(found["select"]["encoder"]["loss"]["each"]) == 3
    assert pipeline.status(settings)["validate"]
    # Fewer again: nothing is trained, and the file says what was asked for.
    without_workers.clear()
    fewer = make_settings(tmp_path / "run", validate=FEW | {"seeds": 2, "subsets": 3})
    pipeline.run(fewer, stages=("validate",), console=QUIET)
    assert without_workers == []
    assert validation_of(fewer) == validation_of(validated)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"validate": FEW | {"seeds": 2, "steps": 4}}, "validate.steps is 3 there and 4 here"),
        ({"sketch": {"width": 2048}}, "sketch.width is 1024 there and 2048 here"),
        ({"distill": {"epochs": 3}}, "distill.epochs is 2 there and 3 here"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_written(
    validated: PipelineSettings,
    make_settings: Callable[..., PipelineSettings],
    changed: dict[str, Any],
    part: str,
) -> None:
    """Prevents losses after other fine-tunes from being averaged with those that are there."""
    before = file_hashes(validated.output)
    fields: dict[str, Any] = {"validate": FEW | {"seeds": 3, "subsets": 3}}
    with pytest.raises(UserError, match=part):
        pipeline.run(
            make_settings(validated.output, **(fields | changed)), stages=("validate",), console=QUIET
        )
    assert file_hashes(validated.output) == before


def test_it_is_left_out_unless_asked_for_and_touches_no_other_stage(
    finished: PipelineSettings, validated: PipelineSettings
) -> None:
    """Prevents hours of fine-tunes that nobody wanted, and a validation that makes other stages run again."""
    assert "validate" not in pipeline.status(finished)
    assert not (Path(finished.output) / "validation").exists()
    status = pipeline.status(validated)
    # The page is made anew, for it shows what retraining has shown.
    assert not status.pop("report")
    assert all(status.values())
    own = ("_state/validate", "validation", "settings.yaml", "run_summary.json")
    kept = {name: h for name, h in file_hashes(validated.output).items() if not name.startswith(own)}
    assert kept == {n: h for n, h in file_hashes(finished.output).items() if not n.startswith(own)}
    summary = json.loads((Path(validated.output) / "run_summary.json").read_bytes())["stages"]["validate"]
    assert summary["fine_tunes"] == len(validate.designs(validated))
    assert summary["rows_in"] == summary["rows_out"] == 6 * (summary["fine_tunes"] - 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (3, 16)),
        (["--seeds", "5"], (5, 0)),
        (["--set", "validate.subsets=7"], (0, 7)),
        (["--seeds", "2", "--subsets", "9", "--set", "validate.seeds=1"], (2, 9)),
    ],
)
def test_the_command_asks_for_what_its_options_and_settings_say(
    finished: PipelineSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: tuple[int, int],
) -> None:
    """Prevents a command that does nothing since a setting is 0, or more than it was told."""
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(yaml.safe_load(finished.to_yaml())))
    seen: list[tuple[Any, ...]] = []

    def note(settings: PipelineSettings, **others: Any) -> None:
        seen.append((settings.validate.seeds, settings.validate.subsets, others["stages"]))

    monkeypatch.setattr(pipeline, "run", note)
    command = ["validate", "--config", str(tmp_path / "pipeline.yaml"), *arguments]
    assert cli.exit_status_of(lambda: cli.app(command, standalone_mode=False)) == 0
    assert seen == [(*expected, ("validate",))]


def _sketches(settings: PipelineSettings, side: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(settings.output) / "sketches" / side).to_pylist()
    return rows


def _hashes(path: Path) -> dict[str, str]:
    """Of a folder's files, or of a file alone."""
    return file_hashes(path) if path.is_dir() else {"": file_hashes(path.parent)[path.name]}


def test_the_report_takes_up_what_retraining_has_shown(
    validated: PipelineSettings, finished: PipelineSettings, tmp_path: Path
) -> None:
    """Prevents a proof that nobody reads, and a page that goes on showing a smaller one."""
    shutil.copytree(validated.output, tmp_path / "run")
    settings = validated.model_copy(update={"output": str(tmp_path / "run")})
    pipeline.run(settings, stages=("report",), console=QUIET)
    page = (tmp_path / "run/report.html").read_text("utf-8")
    assert "Proof by retraining" in page
    assert "with 2 seeds each" in page
    assert "Proof by retraining" not in (Path(finished.output) / "report.html").read_text("utf-8")
