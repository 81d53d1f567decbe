"""What every way of training has in common: blocks, steps, the schedule, and a state to take up again.

Row i of either side belongs to worker i modulo the number of workers: it alone reads and embeds it. What a
block's rows become is then gathered, every worker computes the same loss over the whole block, and the
gradients, each through the worker's own rows only, are summed. So the step is the same for one worker and
for many.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from influcoder_ray.encoder.blocks import Block, epoch_blocks
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.specs import DistillSpec
from influcoder_ray.encoder.workers import Workers

_STATE_TENSORS = "state.safetensors"
_STATE_NUMBERS = "state.json"


@dataclass(frozen=True)
class Examples:
    """The training rows of one side (queries or pool) that this worker owns.

    `windows` are token ids, `sketches` (rows, D) of any length; `total` counts the rows of all workers.
    """

    windows: Sequence[Sequence[int]]
    sketches: np.ndarray
    total: int


class Training(ABC):
    """The state of a distillation: encoder, optimizer, schedule, and the epoch that comes next.

    Args:
        epochs: those that take steps, of all that there are.
    """

    def __init__(
        self,
        encoder: Encoder,
        queries: Examples,
        pool: Examples,
        spec: DistillSpec,
        *,
        seed: int,
        workers: Workers,
        epochs: int,
    ) -> None:
        self.encoder = encoder
        self.next_epoch = 1
        self._queries, self._pool = queries, pool
        self._spec, self._seed, self._workers = spec, seed, workers
        self._parameters = [p for p in encoder.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay
        )
        self.steps_per_epoch = len(self._blocks(1))
        self.steps = epochs * self.steps_per_epoch
        warmup_steps = max(1, round(self.steps * spec.warmup_share))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: (
                min(1.0, (step + 1) / warmup_steps)
                * max(
                    0.0,
                    (self.steps - step) / max(1, self.steps - warmup_steps) if step >= warmup_steps else 1.0,
                )
            ),
        )

    @abstractmethod
    def train_epoch(self, report: Callable[[int, float], None] = lambda step, loss: None) -> float | None:
        """Run the next epoch; returns its mean loss, None where it took no steps.

        Args:
            report: called after each step with the steps done since the first epoch and the step's loss.
        """

    @abstractmethod
    def loss(self, block: Block) -> Tensor:
        """The loss of a block, the same on every worker, with gradients through this worker's rows."""

    def tensors(self) -> dict[str, Tensor]:
        """What the next epoch depends on beside model and optimizer."""
        return {}

    def take(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `tensors` gave."""
        assert not tensors

    @property
    def steps_done(self) -> int:
        """Steps taken since the first epoch."""
        return int(self._schedule.last_epoch)

    def backward(self, block: Block) -> float:
        """The gradients of a block's loss, summed over workers, in the parameters; returns the loss."""
        loss = self.loss(block)
        if loss.requires_grad:
            loss.backward()
        self._workers.sum_gradients(self._parameters)
        return float(loss.detach())

    def save(self, folder: Path) -> None:
        """Write everything that the next epoch depends on, without pickle."""
        tensors = {f"model.{k}": v for k, v in self.encoder.model.state_dict().items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        tensors |= {f"other.{k}": v for k, v in self.tensors().items()}
        save_file(
            {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, folder / _STATE_TENSORS
        )
        numbers = {"next_epoch": self.next_epoch, "schedule_step": self._schedule.last_epoch}
        (folder / _STATE_NUMBERS).write_text(json.dumps(numbers))

    def restore(self, folder: Path) -> None:
        """Take up where `save` left off."""
        tensors = load_file(folder / _STATE_TENSORS)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.encoder.model.load_state_dict(part("model."))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer.").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        numbers: dict[str, Any] = json.loads((folder / _STATE_NUMBERS).read_text())
        schedule = self._schedule.state_dict()
        self._schedule.load_state_dict({**schedule, "last_epoch": numbers["schedule_step"]})
        groups = self._optimizer.state_dict()["param_groups"]
        rate = self._spec.learning_rate * self._schedule.lr_lambdas[0](numbers["schedule_step"])
        self._optimizer.load_state_dict(
            {"state": state, "param_groups": [{**group, "lr": rate} for group in groups]}
        )
        self.take({k: v.to(self.encoder.device) for k, v in part("other.").items()})
        self.next_epoch = numbers["next_epoch"]

    def _take_steps(self, report: Callable[[int, float], None]) -> float:
        """One step for each block of the next epoch; returns the mean loss."""
        losses = []
        for block in self._blocks(self.next_epoch):
            self._optimizer.zero_grad(set_to_none=True)
            losses.append(self.backward(block))
            self._optimizer.step()
            self._schedule.step()
            report(self.steps_done, losses[-1])
        return float(np.mean(losses))

    def _blocks(self, epoch: int) -> list[Block]:
        return epoch_blocks(
            self._queries.total,
            self._pool.total,
            queries_per_step=self._spec.queries_per_step,
            candidates_per_step=self._spec.candidates_per_step,
            seed=self._seed,
            epoch=epoch,
        )

    def _mine(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where those of `rows` that this worker owns lie among its own, and who owns each of `rows`."""
        owners = rows % self._workers.size
        return rows[owners == self._workers.rank] // self._workers.size, owners
