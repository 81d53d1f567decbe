"""The distillation as a Ray Train run: workers, restarts, checkpoints."""

import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
import ray.train
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.specs import HISTORY
from influcoder_ray.errors import RunFailed
from influcoder_ray.stages import casualties
from influcoder_ray.stages.casualties import Record
from influcoder_ray.stages.cluster import Reservation, reserve, result_of
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.work.familiarity import familiarity_file
from influcoder_ray.stages.work.training import BEST, train_loop, training_worker
from influcoder_ray.tables.place import Place

# A machine that goes without notice counts as a failure, and of cheap machines many go.
_FAILURES = 10
_LOOK_SECONDS = 2.0


def train(
    settings: PipelineSettings, digest: str, display: Display, *, seed: int, stage: str
) -> dict[str, bytes]:
    """Train until the last epoch; returns the best encoder's files and the epochs' figures, by name.

    Args:
        digest: names the run: the same digest takes up its last checkpoint, another one never does.
        seed: of what is random in training.
        stage: whose record below `_state/` holds the checkpoints.

    Raises:
        RunFailed: training failed, or hung, again and again.
    """
    reservation = reserve(settings.workers.distill)
    storage = settings.root / "_state" / stage / "train"
    filesystem = None
    if not storage.is_local:
        filesystem = PyFileSystem(FSSpecHandler(storage.filesystem))
    else:
        Path(storage.path).mkdir(parents=True, exist_ok=True)
    with casualties.counted() as past, display.stage(stage, None, "steps") as board:
        trainer = TorchTrainer(
            train_loop,
            train_loop_config={
                "settings": settings.model_dump(mode="json"),
                "seed": seed,
                "threads": reservation.threads,
                "board": board,
                "past": past,
                "hung_after_seconds": reservation.hung_after_seconds,
            },
            scaling_config=_scaling(reservation),
            run_config=RunConfig(
                name=digest[:16],
                storage_path=storage.path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=_FAILURES),
                checkpoint_config=CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            result = _fit(trainer, past, reservation.max_workers)
        except ray.train.TrainingFailedError as error:
            raise RunFailed(
                f"distill: training failed {_FAILURES + 1} times, the last time with {_last_line(error)}; "
                "the last checkpoint is kept: run the same command again"
            ) from error
    if result.checkpoint is None:
        raise RunFailed("distill: training ended without a checkpoint; run the same command again")
    with result.checkpoint.as_directory() as folder:
        best = Path(folder) / BEST
        files = {
            path.relative_to(best).as_posix(): path.read_bytes()
            for path in sorted(best.rglob("*"))
            if path.is_file()
        }
        files[HISTORY] = (Path(folder) / HISTORY).read_bytes()
    return files


def _fit(trainer: TorchTrainer, past: Any, workers: int) -> ray.train.Result:
    """Train on a thread of its own: on the main one Ray takes Ctrl-C for itself, and ends with status 0.

    Raises:
        RunFailed: a worker hung, and so did the one that came after it; or it failed with the same words
            again and again.
    """
    outcome: Future[ray.train.Result] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:  # noqa: BLE001 - raised where the outcome is waited for
            outcome.set_exception(error)

    # A daemon: a run that is told to stop does not wait for its training.
    threading.Thread(target=fit, daemon=True).start()
    while True:
        try:
            return outcome.result(_LOOK_SECONDS)
        except TimeoutError:
            # Raised by the training itself, it would say nothing new for ever.
            if outcome.done():
                raise
        records: list[Record] = ray.get(
            [past.record.remote(training_worker(rank)) for rank in range(workers)]
        )
        lost = [record for record in records if record.set_aside]
        if lost:
            raise RunFailed(
                f"distill: {lost[0].set_aside}; the last checkpoint is kept: run the same command again"
            )


def measure_familiarity(settings: PipelineSettings, encoder: Place) -> bytes:
    """The file beside a trained encoder that familiarity is read off; one worker makes it."""
    reservation = reserve(settings.workers.distill)
    task = ray.remote(familiarity_file).options(num_cpus=reservation.cpus, num_gpus=reservation.gpus)
    return bytes(result_of(task.remote(settings, encoder.uri, reservation.threads)))


def _scaling(reservation: Reservation) -> ScalingConfig:
    few, many = reservation.min_workers, reservation.max_workers
    resources = {"CPU": reservation.cpus} | ({"GPU": reservation.gpus} if reservation.gpus else {})
    return ScalingConfig(
        num_workers=many if few == many else (few, many),
        use_gpu=reservation.gpus > 0,
        resources_per_worker=resources,
    )


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
