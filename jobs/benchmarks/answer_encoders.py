"""Distilled encoders without Ray, each kept in a folder named by all that decides it."""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.answer_gradients import key_of
from influcoder_ray.encoder.head import SIDES, Side
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.recipes import training
from influcoder_ray.encoder.specs import DistillSpec, EncoderSpec
from influcoder_ray.encoder.training import Examples
from influcoder_ray.encoder.workers import Workers
from influcoder_ray.evaluation.epochs import best_epoch, epoch_figures
from influcoder_ray.examples import Example
from influcoder_ray.tables.fingerprint import Fingerprint, digest_of, model_identity
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import StageState

_FOLDER = "encoder"


@dataclass(frozen=True)
class Signal:
    """Examples (N,) of one side and split with their sketches (N, D) of unit length."""

    examples: list[Example]
    sketches: np.ndarray


# {"queries": {"train": ..., "validation": ...}, "pool": the same}
Signals = Mapping[Side, Mapping[str, Signal]]


@dataclass(frozen=True)
class Distilled:
    """A trained encoder, what its training took, and the epoch that was kept (0: the untrained one)."""

    encoder: Encoder
    seconds: float
    epoch: int


def distilled(
    work: Place,
    spec: EncoderSpec,
    distill: DistillSpec,
    signals: Signals,
    *,
    gradients: Fingerprint,
    seed: int,
    device: torch.device,
    say: Callable[[str], None],
) -> Distilled:
    """The encoder of this seed: from the work folder, or trained as the stage `distill` does with one worker.

    Args:
        gradients: of the teacher that the sketches come from.
    """
    fingerprint = Fingerprint(
        {
            "scheme": "spectral-2",
            "seed": seed,
            "gradients": gradients.digest,
            "encoder": spec.model_dump(mode="json", exclude={"path"})
            | {"files": model_identity(Place(spec.path), "--encoder")},
            "distill": distill.model_dump(mode="json"),
            "contents": {
                f"{side}/{split}": digest_of([key_of(e) for e in signal.examples])
                for side, splits in signals.items()
                for split, signal in splits.items()
            },
        }
    )
    root = work / f"encoder-{fingerprint.digest[:16]}"
    state = StageState(root, "distill", (_FOLDER,))
    unit = f"encoder-{fingerprint.digest[:16]}"
    manifest = state.manifests().get(unit)
    if manifest is None:
        state.begin(fingerprint)
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            best = Path(scratch) / _FOLDER
            epoch = _train(spec, distill, signals, best, seed=seed, device=device, say=say)
            files = {
                f"{_FOLDER}/{path.relative_to(best).as_posix()}": path.read_bytes()
                for path in sorted(best.rglob("*"))
                if path.is_file()
            }
        manifest = state.commit_files(
            unit, files, seconds=time.monotonic() - started, counters={"epoch": epoch}
        )
    encoder = Encoder.load(spec.model_copy(update={"path": (root / _FOLDER).path}), device)
    return Distilled(encoder, manifest.seconds, int(manifest.counters["epoch"]))


def _train(
    spec: EncoderSpec,
    distill: DistillSpec,
    signals: Signals,
    best: Path,
    *,
    seed: int,
    device: torch.device,
    say: Callable[[str], None],
) -> int:
    """Train, leave the encoder of the best epoch in a folder, and return that epoch's number."""
    encoder = Encoder.load(spec, device)
    queries, pool = (
        Examples(encoder.windows(train.examples)[0], train.sketches, len(train.examples))
        for train in (signals[side]["train"] for side in SIDES)
    )
    distillation = training(encoder, queries, pool, distill, seed=seed, workers=Workers())
    validation = {side: signals[side]["validation"] for side in SIDES}
    left, right = (validation[side].sketches.astype(np.float32) for side in SIDES)
    exact = left @ right.T

    def figures() -> dict[str, float]:
        by_query, by_row = (encoder.embed(validation[side].examples, side)[0] for side in SIDES)
        return epoch_figures(by_query @ by_row.T, exact)

    epochs: list[dict[str, Any]] = [{"epoch": 0} | figures()]
    encoder.save(best)
    while distillation.next_epoch <= distill.epochs:
        epoch = distillation.next_epoch
        distillation.train_epoch()
        epochs.append({"epoch": epoch} | figures())
        agreement = ", ".join(f"{v:.3f}" for k, v in epochs[-1].items() if k != "epoch")
        say(f"encoder of seed {seed}: epoch {epoch} of {distill.epochs}, validation {agreement}")
        if best_epoch(epochs, fall_back=distill.fall_back) == epoch:
            shutil.rmtree(best)
            encoder.save(best)
    return best_epoch(epochs, fall_back=distill.fall_back)
