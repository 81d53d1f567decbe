"""A training that hangs or fails is started anew, and given up when the same happens again."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.cloudpickle
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from influcoder_ray.errors import RunFailed
from influcoder_ray.stages import casualties
from influcoder_ray.stages.train_on_ray import _fit
from influcoder_ray.stages.work.training import train_loop

pytestmark = [pytest.mark.cluster, pytest.mark.long]
# Workers cannot import this file: `hang` travels to them whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def hang(config: dict[str, Any]) -> None:
    from influcoder_ray.stages.watch import Watch
    from influcoder_ray.stages.work.training import training_worker

    with Path(config["starts"]).open("a") as file:
        file.write("x")

    def tell(worker: str, text: str, stack: str) -> None:
        ray.get(config["past"].hung.remote(worker, text, stack))

    with Watch(2.0, tell).over(training_worker(0), "training"):
        time.sleep(3600)


def trainer_of(loop: Any, config: dict[str, Any], storage: Path) -> TorchTrainer:
    return TorchTrainer(
        loop,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            name="run", storage_path=str(storage), failure_config=FailureConfig(max_failures=10)
        ),
    )


def test_a_training_that_hangs_again_ends_in_one_line(local_ray: None, tmp_path: Path) -> None:
    """Workers that wait for each other hold their GPUs until somebody looks."""
    with casualties.counted() as past:
        trainer = trainer_of(hang, {"past": past, "starts": str(tmp_path / "starts")}, tmp_path)
        with pytest.raises(
            RunFailed, match="distill: 2 workers hung, the last one training: no sign"
        ) as failed:
            _fit(trainer, past, 1)
    assert "\n" not in str(failed.value)
    assert (tmp_path / "starts").read_text() == "xx"


def test_a_training_that_fails_in_the_same_words_is_not_tried_eleven_times(
    local_ray: None, tmp_path: Path
) -> None:
    """What no machine is to blame for would be tried for ten minutes, GPUs in hand, before it is told."""
    with casualties.counted() as past:
        config = {"settings": {}, "seed": 0, "threads": 1, "board": None, "past": past}
        trainer = trainer_of(train_loop, {**config, "hung_after_seconds": 60.0}, tmp_path)
        with pytest.raises(RunFailed, match="distill: failed 3 times with ValidationError") as failed:
            _fit(trainer, past, 1)
    assert "\n" not in str(failed.value)
