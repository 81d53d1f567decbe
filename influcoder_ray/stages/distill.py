"""Distill: Ray Train teaches the encoder to rank as the teacher's sketches do."""

import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.model import Encoder, check_encoder
from influcoder_ray.encoder.training import Distillation, Side
from influcoder_ray.encoder.workers import Workers
from influcoder_ray.errors import RunFailed
from influcoder_ray.evaluation.agreement import aggregated_rho, per_query_rho
from influcoder_ray.stages import sample, sketch
from influcoder_ray.stages.cluster import Reservation, reserve
from influcoder_ray.stages.device import prepare_device
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.stages.progress import Display
from influcoder_ray.stages.signals import Signals, influence, read_signals
from influcoder_ray.tables.fingerprint import Fingerprint, model_identity
from influcoder_ray.tables.models import local_model_folder
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, StageState

ENCODER = "encoder"
HISTORY = "distillation.json"
_BEST = "best"
_FAILURES = 3


def state(root: Place) -> StageState:
    return StageState(root, "distill", (ENCODER,))


def check(settings: PipelineSettings) -> None:
    """Refuse an encoder that cannot be used; reads no weights.

    Raises:
        UserError: naming what is wrong with it.
    """
    folder = local_model_folder(settings.encoder.path, setting="encoder.path")
    check_encoder(settings.encoder.model_copy(update={"path": folder}))


def plan(settings: PipelineSettings) -> StagePlan:
    folder = local_model_folder(settings.encoder.path, setting="encoder.path")
    fingerprint = Fingerprint(
        {
            "stage": "distill",
            "scheme": "block-1",
            "seed": settings.seed,
            "inputs": {
                "sample": sample.state(settings.root).finished().digest,
                "sketch": sketch.state(settings.root).finished().digest,
            },
            "encoder": settings.encoder.model_dump(mode="json", exclude={"path"})
            | {"files": model_identity(Place(folder))},
            "distill": settings.distill.model_dump(mode="json"),
        }
    )
    record = state(settings.root)
    unit_id = f"encoder-{fingerprint.digest[:16]}"

    def run(display: Display) -> Mapping[str, Manifest]:
        record.begin(fingerprint)
        started = time.monotonic()
        files, counters = _train(settings, fingerprint.digest, display)
        seconds = time.monotonic() - started
        return {unit_id: record.commit_files(unit_id, files, seconds=seconds, counters=counters)}

    return StagePlan(record, fingerprint, (unit_id,), run)


def _train(
    settings: PipelineSettings, digest: str, display: Display
) -> tuple[dict[str, bytes], dict[str, float]]:
    """Train on Ray; returns the best encoder's files by path below the output, and counts."""
    reservation = reserve(settings.workers.distill)
    storage = settings.root / "_state" / "distill" / "train"
    filesystem = None
    if not storage.is_local:
        filesystem = PyFileSystem(FSSpecHandler(storage.filesystem))
    else:
        LocalFileSystem(auto_mkdir=True).makedirs(storage.path, exist_ok=True)
    with display.stage("distill", None, "steps") as board:
        trainer = TorchTrainer(
            train_loop,
            train_loop_config={
                "settings": settings.model_dump(mode="json"),
                "threads": reservation.threads,
                "board": board,
            },
            scaling_config=_scaling(reservation),
            run_config=RunConfig(
                # The name carries the fingerprint: the same run restores its last checkpoint, and
                # another one never does.
                name=digest[:16],
                storage_path=storage.path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise RunFailed(
                f"distill: training failed {_FAILURES + 1} times, the last time with {_last_line(error)}; "
                "the last checkpoint is kept: run the same command again"
            ) from error
    if result.checkpoint is None:
        raise RunFailed("distill: training ended without a checkpoint; run the same command again")
    with result.checkpoint.as_directory() as folder:
        best = Path(folder) / _BEST
        files = {
            f"{ENCODER}/{path.relative_to(best).as_posix()}": path.read_bytes()
            for path in sorted(best.rglob("*"))
            if path.is_file()
        }
        history = (Path(folder) / HISTORY).read_bytes()
    files[f"{ENCODER}/{HISTORY}"] = history
    return files, {"epochs": len(json.loads(history)["epochs"]) - 1}


def _scaling(reservation: Reservation) -> ScalingConfig:
    few, many = reservation.min_workers, reservation.max_workers
    resources = {"CPU": reservation.cpus} | ({"GPU": reservation.gpus} if reservation.gpus else {})
    return ScalingConfig(
        num_workers=many if few == many else (few, many),
        use_gpu=reservation.gpus > 0,
        resources_per_worker=resources,
    )


def train_loop(config: dict[str, Any]) -> None:
    """What every Ray Train worker runs: epochs, each closed by validation and a checkpoint."""
    settings = PipelineSettings.model_validate(config["settings"])
    workers = Workers()
    folder = local_model_folder(settings.encoder.path, setting="encoder.path")
    spec = settings.encoder.model_copy(update={"path": folder})
    encoder = Encoder.load(spec, prepare_device(config["threads"]))
    queries, pool = (read_signals(settings, side, "train") for side in ("queries", "pool"))
    distillation = Distillation(
        encoder,
        _side(encoder, queries, workers),
        _side(encoder, pool, workers),
        settings.distill,
        seed=settings.seed,
        workers=workers,
    )
    validation = [read_signals(settings, side, "validation") for side in ("queries", "pool")]
    total = settings.distill.epochs * distillation.steps_per_epoch
    with tempfile.TemporaryDirectory() as scratch:
        best = Path(scratch) / _BEST
        epochs: list[dict[str, Any]] = []
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            epochs.append({"epoch": 0, "loss": None} | _agreement(encoder, *validation))
            encoder.save(best)
        else:
            with checkpoint.as_directory() as held:
                distillation.restore(Path(held))
                shutil.copytree(Path(held) / _BEST, best)
                epochs = json.loads((Path(held) / HISTORY).read_text())["epochs"]
        while distillation.next_epoch <= settings.distill.epochs:
            epoch = distillation.next_epoch
            before = (epoch - 1) * distillation.steps_per_epoch
            note = f"validation {_figure(epochs[-1]):.3f}, untrained {_figure(epochs[0]):.3f}"

            def report(step: int, loss: float, before: int = before, note: str = note) -> None:
                if workers.rank == 0:
                    config["board"].set.remote("steps", before + step, f"of {total} steps, {note}")

            loss = distillation.train_epoch(report)
            epochs.append({"epoch": epoch, "loss": loss} | _agreement(encoder, *validation))
            if _figure(epochs[-1]) > max(_figure(e) for e in epochs[:-1]):
                shutil.rmtree(best)
                encoder.save(best)
            _report(distillation, epochs, best, workers, Path(scratch))


def _report(
    distillation: Distillation,
    epochs: list[dict[str, Any]],
    best: Path,
    workers: Workers,
    scratch: Path,
) -> None:
    """Hand Ray Train the epoch's figures, and from the first worker a checkpoint."""
    figures = {k: v for k, v in epochs[-1].items() if v is not None}
    if workers.rank != 0:
        ray.train.report(figures)
        return
    folder = scratch / f"epoch-{epochs[-1]['epoch']}"
    folder.mkdir()
    distillation.save(folder)
    shutil.copytree(best, folder / _BEST)
    chosen = max(epochs, key=_figure)["epoch"]
    (folder / HISTORY).write_text(json.dumps({"chosen_epoch": chosen, "epochs": epochs}, indent=2))
    ray.train.report(figures, checkpoint=Checkpoint.from_directory(str(folder)))
    shutil.rmtree(folder)


def _side(encoder: Encoder, signals: Signals, workers: Workers) -> Side:
    """The part of a side that this worker owns."""
    mine = slice(workers.rank, None, workers.size)
    windows, _ = encoder.windows(signals.examples[mine])
    return Side(windows, signals.sketches[mine], len(signals))


def _agreement(encoder: Encoder, queries: Signals, pool: Signals) -> dict[str, float]:
    predicted = encoder.embed(queries.examples)[0] @ encoder.embed(pool.examples)[0].T
    exact = influence(queries, pool)
    return {
        "validation_per_query_rho": float(per_query_rho(predicted, exact).mean()),
        "validation_aggregated_rho": aggregated_rho(predicted, exact),
    }


def _figure(epoch: Mapping[str, Any]) -> float:
    """What the best epoch is chosen by: the mean of both rank agreements on the validation split."""
    return float(epoch["validation_per_query_rho"] + epoch["validation_aggregated_rho"]) / 2


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
