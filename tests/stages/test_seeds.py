"""Evaluation over training seeds: which encoders are trained, what is kept, what the figures are."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from material import file_hashes
from rich.console import Console

from influcoder_ray import pipeline
from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.specs import HISTORY
from influcoder_ray.evaluation.agreement import point_estimates
from influcoder_ray.stages import distill, train_on_ray
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.signals import influence, read_signals

pytestmark = pytest.mark.cluster
QUIET = Console(quiet=True)
MakeSettings = Callable[..., PipelineSettings]
# By a recipe whose steps begin at once, and with something left to do when the first epoch is done.
TRAINING = {"recipe": "influcoder", "listwise_share": 0.0, "epochs": 4}
RECALL_AT = [3, 10]


@dataclass(frozen=True)
class Grown:
    """A finished run to which seeds were added: first one, then another. Read only.

    `trained` holds the seeds that were trained by the first run and by each of the two that followed,
    `evaluations` what evaluation.json held after each.
    """

    settings: PipelineSettings
    trained: tuple[list[int], ...]
    evaluations: tuple[dict[str, Any], ...]


@contextmanager
def told_of_training() -> Iterator[list[int]]:
    """The seeds with which training is started while this lasts."""
    started: list[int] = []
    train = train_on_ray.train

    def told(*arguments: Any, seed: int, **rest: Any) -> dict[str, bytes]:
        started.append(seed)
        return train(*arguments, seed=seed, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_on_ray, "train", told)
        yield started


@pytest.fixture(scope="module")
def grown(make_settings: MakeSettings, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    folder = tmp_path_factory.mktemp("grown") / "run"
    trained, evaluations = [], []
    for seeds, stages in ((1, pipeline.STAGES), (2, ("evaluate",)), (3, pipeline.STAGES)):
        settings = settings_of(make_settings, folder, seeds=seeds)
        with told_of_training() as started:
            pipeline.run(settings, stages=stages, console=QUIET)
        trained.append(started)
        evaluations.append(evaluation_of(folder))
    return Grown(settings, tuple(trained), tuple(evaluations))


@pytest.fixture
def distilled(grown: Grown, tmp_path: Path) -> Path:
    """An output folder that holds a run up to its own encoder."""
    for name in ("sample", "sketches", "encoder", "_state"):
        shutil.copytree(Path(grown.settings.output) / name, tmp_path / "run" / name)
    for name in ("seeds", "embed", "attribute", "evaluate", "report"):
        shutil.rmtree(tmp_path / "run/_state" / name)
    return tmp_path / "run"


def settings_of(make_settings: MakeSettings, folder: Path, **evaluate: Any) -> PipelineSettings:
    return make_settings(folder, distill=TRAINING, evaluate={"recall_at": RECALL_AT} | evaluate)


def evaluation_of(folder: Path | str) -> dict[str, Any]:
    return dict(json.loads((Path(folder) / "evaluation.json").read_bytes()))


def encoder_of(settings: PipelineSettings, seed: int) -> Path:
    return Path(distill.encoder_folder(settings, seed).uri)


def test_a_seed_more_trains_that_one_alone(grown: Grown) -> None:
    """Prevents paying again for encoders that are there, and a folder that has to be cleared by hand."""
    assert grown.trained == ([0], [1], [2])
    assert [evaluation["seeds"] for evaluation in grown.evaluations] == [[0], [0, 1], [0, 1, 2]]
    for before, after in pairwise(grown.evaluations):
        own, same = (e["methods"]["encoder"]["per_query_rho"] for e in (before, after))
        assert {k: own[k] for k in ("mean", "std")} == {k: same[k] for k in ("mean", "std")}
    assert "seeds" not in grown.evaluations[0]["methods"]["encoder"]["per_query_rho"]
    # The last of the runs was of all stages, and found no more to do than these two.
    assert "mean of 3 training seeds" in (Path(grown.settings.output) / "report.html").read_text()
    assert pipeline.status(grown.settings) == dict.fromkeys(pipeline.wanted_stages(grown.settings), True)


def test_fewer_seeds_again_keep_the_encoders_that_are_trained(
    grown: Grown, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Prevents a look at one seed from throwing away what took the others' training."""
    shutil.copytree(grown.settings.output, tmp_path / "run")
    with told_of_training() as started:
        for seeds in (1, 3):
            settings = settings_of(make_settings, tmp_path / "run", seeds=seeds)
            pipeline.run(settings, stages=("evaluate", "report"), console=QUIET)
            assert evaluation_of(tmp_path / "run") == grown.evaluations[seeds - 1]
            shown = (tmp_path / "run/report.html").read_text()
            assert ("training seeds" in shown) is (seeds > 1)
    assert started == []


def test_each_seed_gives_an_encoder_of_its_own_and_the_first_is_the_runs(grown: Grown) -> None:
    """Prevents a spread of nought from training the same encoder again and again."""
    folders = [encoder_of(grown.settings, seed) for seed in range(3)]
    assert folders[0] == Path(grown.settings.output) / "encoder"
    histories = [json.loads((folder / HISTORY).read_bytes()) for folder in folders]
    assert len({tuple(epoch["loss"] for epoch in history["epochs"]) for history in histories}) == 3
    chosen = [history["chosen_epoch"] for history in histories]
    assert grown.evaluations[-1]["chosen_epochs"] == chosen
    # Seeds whose training did not help keep one and the same encoder, the untrained one.
    weights = {file_hashes(folder)["model.safetensors"] for folder in folders}
    assert len(weights) == len([epoch for epoch in chosen if epoch]) + (0 in chosen)


def test_a_seeds_encoder_is_the_one_that_it_gives_alone(
    grown: Grown, make_settings: MakeSettings, distilled: Path
) -> None:
    """Prevents seeds that leak into each other, or that change the sample along with the training."""
    alone = settings_of(make_settings, distilled)
    distill.plan(alone, 2).run(Display(QUIET))
    assert file_hashes(encoder_of(alone, 2)) == file_hashes(encoder_of(grown.settings, 2))


def test_figures_over_seeds_are_those_of_each_encoder_by_itself(
    grown: Grown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a mean over other encoders, or a spread over queries that passes for one over seeds."""
    from influcoder_ray.stages.work.embedding import load_encoder

    monkeypatch.setattr("ray.get_gpu_ids", list)
    seeded = grown.settings
    queries, pool = (read_signals(seeded, side, "test") for side in ("queries", "pool"))
    exact = influence(queries, pool)

    def figures(path: str) -> dict[str, float]:
        encoder = load_encoder(seeded.encoder.model_copy(update={"path": path}), threads=1)
        predicted = encoder.embed(queries.examples, "queries")[0] @ encoder.embed(pool.examples, "pool")[0].T
        return point_estimates(predicted, exact, RECALL_AT)

    each = [figures(str(encoder_of(seeded, seed))) for seed in range(3)]
    untrained = figures(seeded.encoder.path)
    evaluation = grown.evaluations[-1]
    for name in ("aggregated_rho", "per_query_rho", "recall_at_3", "recall_at_10"):
        found = evaluation["methods"]["encoder"][name]
        values = [one[name] for one in each]
        assert found["mean"] == pytest.approx(values[0])
        assert found["seeds"]["each"] == pytest.approx(values)
        assert found["seeds"]["mean"] == pytest.approx(np.mean(values))
        assert found["seeds"]["std"] == pytest.approx(np.std(values, ddof=1))
        lead = evaluation["leads"]["untrained_encoder"][name]
        assert lead["mean"] == pytest.approx(values[0] - untrained[name])
        assert lead["seeds"]["each"] == pytest.approx([value - untrained[name] for value in values])
    assert "seeds" not in evaluation["methods"]["untrained_encoder"]["per_query_rho"]


@pytest.mark.long
def test_a_driver_killed_while_a_further_seed_trains_goes_on_to_the_same_encoder(
    grown: Grown, make_settings: MakeSettings, distilled: Path, tmp_path: Path
) -> None:
    """Prevents a machine that goes from costing the epochs that are trained, or from changing a figure."""
    settings = settings_of(make_settings, distilled, seeds=2)
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    driver = subprocess.Popen(
        [sys.executable, "-m", "influcoder_ray.cli", "evaluate", "--config", str(tmp_path / "settings.yaml")],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 200
        while not list(distilled.glob("_state/seeds/1/train/*/checkpoint_manager_snapshot.json")):
            assert driver.poll() is None, "the run ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert not encoder_of(settings, 1).exists()
    pipeline.run(settings, stages=("evaluate",), console=QUIET)
    assert file_hashes(encoder_of(settings, 1)) == file_hashes(encoder_of(grown.settings, 1))
    assert evaluation_of(distilled) == grown.evaluations[1]
