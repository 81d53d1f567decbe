"""Exploring on tiny models: what is chosen, what is trained on, and what stays as it was."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from material import file_hashes
from rich.console import Console

from influcoder_ray import pipeline
from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.promise import most_promising
from influcoder_ray.encoder.recipes import training
from influcoder_ray.encoder.workers import Workers
from influcoder_ray.errors import UserError
from influcoder_ray.examples.example import from_table
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.teacher import Teacher
from influcoder_ray.stages import explore
from influcoder_ray.stages.signals import contents_of, read_examples, read_signals
from influcoder_ray.stages.work.exploring import choose
from influcoder_ray.stages.work.training import tokenized

QUIET = Console(quiet=True)
MakeSettings = Callable[..., PipelineSettings]
UP_TO_EXPLORE = pipeline.STAGES[: pipeline.STAGES.index("explore") + 1]
# Of the 120 corpus rows 60 are in the sample, and 40 of the others are looked through.
EXPLORE = {"examples": 10, "among": 4}


def rows_of(settings: PipelineSettings, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(settings.output) / name).to_pylist()
    return rows


def contents(settings: PipelineSettings, name: str) -> set[str]:
    return {row["content_hash"] for row in rows_of(settings, name)}


@pytest.fixture(scope="module")
def explored(
    finished: PipelineSettings, make_settings: MakeSettings, tmp_path_factory: pytest.TempPathFactory
) -> PipelineSettings:
    """The settings of a whole run that explores; its output is read only."""
    output = tmp_path_factory.mktemp("explored") / "run"
    output.mkdir()
    for part in ("sample", "sketches", "_state/sample", "_state/sketch"):
        shutil.copytree(Path(finished.output) / part, output / part)
    settings = make_settings(
        output, explore=EXPLORE, rerank={"candidates": 7}, workers={"sample": {"max": 2}}
    )
    pipeline.run(settings, console=QUIET)
    return settings


def test_what_is_explored_is_new_and_is_trained_on_alone(
    finished: PipelineSettings, explored: PipelineSettings
) -> None:
    """Prevents a chosen example from counting twice, or from standing in a test that it was chosen for."""
    chosen = contents(explored, "sample/explored")
    assert len(chosen) == len(rows_of(explored, "sample/explored")) == EXPLORE["examples"]
    assert not chosen & (contents(finished, "sample/pool") | contents(finished, "sample/queries"))
    assert {row["split"] for row in rows_of(explored, "sketches/explored")} == {"train"}
    assert set(contents_of(explored, "pool", "train")) == chosen | set(contents_of(finished, "pool", "train"))
    for split in ("validation", "test"):
        assert contents_of(explored, "pool", split) == contents_of(finished, "pool", split)
    evaluation = json.loads((Path(explored.output) / "evaluation.json").read_bytes())
    assert evaluation["split_audit"]["disjoint"] is True
    before = json.loads((Path(finished.output) / "evaluation.json").read_bytes())
    sizes = [it["split_audit"]["sizes"]["pool/train"] for it in (evaluation, before)]
    assert sizes[0] == sizes[1] + EXPLORE["examples"]


def test_signals_of_training_hold_the_explored_with_their_own_sketches(explored: PipelineSettings) -> None:
    """Prevents a text from being taught another text's gradient, and a gradient of another adapter."""
    signals = read_signals(explored, "pool", "train")
    assert signals.total == len(signals) == len(contents_of(explored, "pool", "train"))
    hashes = [e.content_hash for e in signals.examples]
    assert hashes == sorted(hashes)
    assert [e.content_hash for e in read_examples(explored, "pool", "train")] == hashes
    parts = [read_signals(explored, "pool", "train", slice(rank, None, 2)) for rank in range(2)]
    assert [e.content_hash for p in parts for e in p.examples] == hashes[::2] + hashes[1::2]
    device = torch.device("cpu")
    teacher = Teacher.load(explored.model, explored.adapter, seed=explored.seed, device=device)
    sketch = CountSketch(explored.sketch.width, explored.seed)
    chosen = contents(explored, "sample/explored")
    for example, stored in zip(signals.examples, signals.sketches, strict=True):
        if example.content_hash in chosen:
            direct = teacher.sketch(teacher.tokens([example]), sketch).sketches[0]
            np.testing.assert_allclose(stored, direct / np.linalg.norm(direct), atol=1e-3)


def test_the_first_student_of_the_sample_alone_makes_the_choice(explored: PipelineSettings) -> None:
    """Prevents test queries from choosing, and a choice by anything else than predicted influence."""
    encoder = Encoder.load(explored.encoder, torch.device("cpu"))
    sides = [read_signals(explored, side, "train", explored=False) for side in ("queries", "pool")]
    assert len(sides[1]) == len(read_signals(explored, "pool", "train")) - EXPLORE["examples"]
    spec = explored.distill.model_copy(update={"epochs": 1})
    left, right = (tokenized(encoder, side) for side in sides)
    training(encoder, left, right, spec, seed=explored.seed, workers=Workers()).train_epoch()
    assert encoder.head is not None
    queries = encoder.head.of_sketches(sides[0].sketches, "queries").numpy()
    sampled = contents(explored, "sample/pool")
    reservoir = from_table(pq.read_table(Path(explored.output) / explore.RESERVOIR))
    examples = [e for e in reservoir if e.content_hash not in sampled]
    assert len(examples) >= EXPLORE["examples"] * EXPLORE["among"]
    vectors = encoder.embed(examples, "pool")[0]
    chosen = contents(explored, "sample/explored")
    promise = {examples[row].content_hash for row in most_promising(queries, vectors, len(chosen))}
    # The reservoir holds a few more than were looked through.
    assert len(promise & chosen) >= len(chosen) - 3


def test_exploring_leaves_the_sample_and_its_sketches_as_they_are(
    finished: PipelineSettings, explored: PipelineSettings
) -> None:
    """Prevents gradients that are paid for from being computed again when exploring is asked for."""
    for part in ("sample/pool", "sample/queries", "sketches/pool", "sketches/queries"):
        assert file_hashes(Path(explored.output) / part) == file_hashes(Path(finished.output) / part)


def test_gradients_of_explored_examples_are_not_computed_again_to_rerank(explored: PipelineSettings) -> None:
    """Prevents paying twice for the very examples that are likely to be re-ranked."""
    chosen = contents(explored, "sample/explored")
    again = contents(explored, "sketches/candidates")
    assert not again & (chosen | contents(explored, "sample/pool"))
    of_id = {row["example_id"]: row["content_hash"] for row in rows_of(explored, "sample/explored")}
    scored = [row for row in rows_of(explored, "reranked") if row["example_id"] in of_id]
    assert scored
    assert all(row["score"] is not None for row in scored)


def test_the_stage_counts_what_it_looked_through_and_stands_in_the_report(explored: PipelineSettings) -> None:
    """Prevents a cost that nobody is told of."""
    totals = explore.state(explored.root).totals()
    assert totals is not None
    assert totals["reservoir"] == EXPLORE["examples"] * EXPLORE["among"]
    assert totals["explored"] == totals["gradient_evaluations"] == EXPLORE["examples"]
    page = (Path(explored.output) / "report.html").read_text()
    assert re.search(r'<th scope="row"[^>]*>explore</th>', page)


@pytest.mark.parametrize("lost", [explore.EXPLORED, explore.SKETCHES, explore.RESERVOIR])
def test_a_lost_file_is_made_again_to_the_same_bytes(
    explored: PipelineSettings, tmp_path: Path, lost: str
) -> None:
    """Prevents a stage that cannot be resumed, and a choice that changes from run to run."""
    shutil.copytree(explored.output, tmp_path / "run")
    settings = explored.model_copy(update={"output": str(tmp_path / "run")})
    tables = explore.state(settings.root).tables
    before = {table: file_hashes(tmp_path / "run" / table) for table in tables}
    sorted((tmp_path / "run" / lost).iterdir())[0].unlink()
    assert not pipeline.status(settings)["explore"]
    pipeline.run(settings, stages=UP_TO_EXPLORE, console=QUIET)
    assert {table: file_hashes(tmp_path / "run" / table) for table in tables} == before
    assert all(pipeline.status(settings).values())


def test_an_encoder_of_another_choice_is_refused(explored: PipelineSettings) -> None:
    """Prevents an encoder that learnt from the explored from passing for one that did not."""
    before = file_hashes(explored.output)
    none = explored.explore.model_copy(update={"examples": 0})
    with pytest.raises(UserError, match=r"inputs\.explore"):
        pipeline.run(explored.model_copy(update={"explore": none}), console=QUIET)
    more = explored.explore.model_copy(update={"examples": 11})
    with pytest.raises(UserError, match=r"explore\.examples is 10 there and 11 here"):
        pipeline.run(explored.model_copy(update={"explore": more}), console=QUIET)
    assert file_hashes(explored.output) == before


def test_without_examples_the_stage_is_as_if_it_were_not_there(finished: PipelineSettings) -> None:
    """Prevents an empty table, or a stage of zero units in the summary."""
    root = Path(finished.output)
    assert not (root / "sample/explored").exists()
    assert not (root / "_state/explore").exists()
    assert "explore" not in pipeline.status(finished)
    assert "explore" not in json.loads((root / "run_summary.json").read_bytes())["stages"]


def test_a_sample_that_leaves_nothing_to_explore_is_refused(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """A corpus smaller than sample.pool would end in an index error, after all gradients were computed."""
    settings = make_settings(tmp_path, explore=EXPLORE)
    with pytest.raises(UserError, match=r"^explore\.examples: the sample holds every example of the corpus"):
        choose(settings, explore.state(settings.root), "explored", 1)
