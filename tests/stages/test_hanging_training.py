"""A training that hangs is started anew, and given up when it hangs again."""

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


def test_a_training_that_hangs_again_ends_in_one_line(local_ray: None, tmp_path: Path) -> None:
    """Workers that wait for each other hold their GPUs until somebody looks."""
    with casualties.counted() as past:
        trainer = TorchTrainer(
            hang,
            train_loop_config={"past": past, "starts": str(tmp_path / "starts")},
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(
                name="hang", storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=10)
            ),
        )
        with pytest.raises(
            RunFailed, match="distill: 2 workers hung, the last one training: no sign"
        ) as failed:
            _fit(trainer, past, 1)
    assert "\n" not in str(failed.value)
    assert (tmp_path / "starts").read_text() == "xx"
