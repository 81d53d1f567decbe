"""Training: what every Ray Train worker runs, and the checkpoint that closes each epoch."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train import Checkpoint
from ray.train.torch import get_device

from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.head import SIDES, Side
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.recipes import training
from influcoder_ray.encoder.specs import HISTORY
from influcoder_ray.encoder.training import Examples, Training
from influcoder_ray.encoder.workers import Workers
from influcoder_ray.evaluation.epochs import best_epoch, epoch_figures, epoch_quality
from influcoder_ray.examples import Example
from influcoder_ray.stages.casualties import tell_of_hang
from influcoder_ray.stages.folders import at_hand
from influcoder_ray.stages.signals import (
    Signals,
    fit_preconditioner,
    influence,
    preconditioned,
    read_signals,
)
from influcoder_ray.stages.watch import Watch
from influcoder_ray.stages.work.device import prepare_device

# Inside a checkpoint: the folder of the best encoder so far.
BEST = "best"


def train_loop(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs: epochs, each closed by validation and a checkpoint."""
    workers = Workers()
    name, past = training_worker(workers.rank), config["past"]
    watch = Watch(config["hung_after_seconds"], tell_of_hang(past))
    try:
        with tempfile.TemporaryDirectory() as scratch, watch.over(name, "training") as sign:
            _train(config, workers, Path(scratch), sign)
    except Exception as error:
        # Waited for: Ray Train ends this process and starts another as soon as it knows.
        ray.get(past.raised.remote(name, f"{type(error).__name__}: {' '.join(str(error).split())}"))
        raise


def training_worker(rank: int) -> str:
    """What a worker of a training is called among `Casualties`."""
    return f"training worker {rank}"


def _train(config: dict[str, Any], workers: Workers, scratch: Path, sign: Callable[[], None]) -> None:
    settings = PipelineSettings.model_validate(config["settings"])
    device = prepare_device(config["threads"])
    if device.type == "cuda":
        # Ray Train shows every worker all GPUs of its machine, and tells which one is whose.
        device = get_device()
    encoder = Encoder.load(at_hand(settings.encoder), device)
    part = slice(workers.rank, None, workers.size)
    preconditioner = fit_preconditioner(settings)
    queries, pool = (
        preconditioned(read_signals(settings, side, "train", part, scratch=scratch), preconditioner)
        for side in SIDES
    )
    distillation = training(
        encoder,
        tokenized(encoder, queries),
        tokenized(encoder, pool),
        settings.distill,
        seed=config["seed"],
        workers=workers,
    )
    validation = {
        side: preconditioned(read_signals(settings, side, "validation", scratch=scratch), preconditioner)
        for side in SIDES
    }
    exact = influence(validation["queries"], validation["pool"])
    held_out = {side: signals.examples for side, signals in validation.items()}
    best = scratch / BEST
    epochs: list[dict[str, Any]] = []
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        epochs.append({"epoch": 0, "loss": None} | _agreement(encoder, held_out, exact, sign))
        encoder.save(best)
    else:
        with checkpoint.as_directory() as held:
            distillation.restore(Path(held))
            shutil.copytree(Path(held) / BEST, best)
            epochs = json.loads((Path(held) / HISTORY).read_text())["epochs"]
    while distillation.next_epoch <= settings.distill.epochs:
        epoch = distillation.next_epoch
        note = f"validation {epoch_quality(epochs[-1]):.3f}, untrained {epoch_quality(epochs[0]):.3f}"

        def report(step: int, loss: float, note: str = note) -> None:
            sign()
            if workers.rank == 0:
                config["board"].set.remote("steps", step, note, distillation.steps)

        report(distillation.steps_done, 0.0)
        loss = distillation.train_epoch(report)
        epochs.append({"epoch": epoch, "loss": loss} | _agreement(encoder, held_out, exact, sign))
        chosen = best_epoch(epochs, fall_back=settings.distill.fall_back)
        if chosen == epoch:
            shutil.rmtree(best)
            encoder.save(best)
        history = {"chosen_epoch": chosen, "epochs": epochs}
        _report(distillation, history, best, workers, scratch)


def _report(
    distillation: Training,
    history: Mapping[str, Any],
    best: Path,
    workers: Workers,
    scratch: Path,
) -> None:
    """Hand Ray Train the epoch's figures, and from the first worker a checkpoint."""
    last = history["epochs"][-1]
    figures = {k: v for k, v in last.items() if v is not None}
    if workers.rank != 0:
        ray.train.report(figures)
        return
    folder = scratch / f"epoch-{last['epoch']}"
    folder.mkdir()
    distillation.save(folder)
    shutil.copytree(best, folder / BEST)
    (folder / HISTORY).write_text(json.dumps(history, indent=2))
    ray.train.report(figures, checkpoint=Checkpoint.from_directory(str(folder)))
    shutil.rmtree(folder)


def tokenized(encoder: Encoder, signals: Signals) -> Examples:
    """A worker's part of a side, tokenized."""
    windows, _ = encoder.windows(signals.examples)
    return Examples(windows, signals.sketches, signals.total)


def _agreement(
    encoder: Encoder,
    held_out: Mapping[Side, Sequence[Example]],
    exact: np.ndarray,
    sign: Callable[[], None],
) -> dict[str, float]:
    vectors = {
        side: encoder.embed(examples, side, lambda rows: sign())[0] for side, examples in held_out.items()
    }
    return epoch_figures(vectors["queries"] @ vectors["pool"].T, exact)
