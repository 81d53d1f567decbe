"""The training loop: blocks of teacher pairs, spread over workers, one optimizer step a block.

Row i of either side belongs to worker i modulo the number of workers: it alone reads and embeds it.
The vectors and sketches of a block are then gathered, every worker computes the same loss over the
whole block, and the gradients, each through the worker's own rows only, are summed. So the step
is the same for one worker and for many.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from influcoder_ray.encoder.blocks import Block, epoch_blocks
from influcoder_ray.encoder.losses import distillation_loss
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.specs import DistillSpec
from influcoder_ray.encoder.workers import Workers

_STATE_TENSORS = "state.safetensors"
_STATE_NUMBERS = "state.json"


@dataclass(frozen=True)
class Side:
    """The training rows of one side (queries or pool) that this worker owns.

    `windows` are token ids, `sketches` (rows, D) of unit length; `total` counts the rows of all workers.
    """

    windows: Sequence[Sequence[int]]
    sketches: np.ndarray
    total: int


class Distillation:
    """The state of a distillation: encoder, optimizer, schedule, and the epoch that comes next."""

    def __init__(
        self, encoder: Encoder, queries: Side, pool: Side, spec: DistillSpec, *, seed: int, workers: Workers
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
        steps, warmup = spec.epochs * self.steps_per_epoch, spec.warmup_share
        warmup_steps = max(1, round(steps * warmup))
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: (
                min(1.0, (step + 1) / warmup_steps)
                * max(0.0, (steps - step) / max(1, steps - warmup_steps) if step >= warmup_steps else 1.0)
            ),
        )

    def train_epoch(self, report: Callable[[int, float], None] = lambda step, loss: None) -> float:
        """Run the next epoch; returns its mean loss.

        Args:
            report: called after each step with the steps done in this epoch and the step's loss.
        """
        losses = []
        for step, block in enumerate(self._blocks(self.next_epoch), 1):
            losses.append(self.step(block))
            report(step, losses[-1])
        self.next_epoch += 1
        return float(np.mean(losses))

    def step(self, block: Block) -> float:
        """One optimizer step on a block; returns its loss."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self.backward(block)
        self._optimizer.step()
        self._schedule.step()
        return loss

    def backward(self, block: Block) -> float:
        """The gradients of a block's loss, summed over workers, in the parameters; returns the loss."""
        query_vectors, query_sketches = self._gathered(self._queries, block.queries)
        pool_vectors, pool_sketches = self._gathered(self._pool, block.pool)
        loss = distillation_loss(
            query_vectors @ pool_vectors.T,
            query_sketches @ pool_sketches.T,
            listwise_share=self._spec.listwise_share,
            temperature=self._spec.temperature,
        )
        if loss.requires_grad:
            loss.backward()
        self._workers.sum_gradients(self._parameters)
        return float(loss.detach())

    def save(self, folder: Path) -> None:
        """Write everything that the next epoch depends on, without pickle."""
        tensors = {f"model.{k}": v for k, v in self.encoder.model.state_dict().items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        save_file(
            {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, folder / _STATE_TENSORS
        )
        numbers = {"next_epoch": self.next_epoch, "schedule_step": self._schedule.last_epoch}
        (folder / _STATE_NUMBERS).write_text(json.dumps(numbers))

    def restore(self, folder: Path) -> None:
        """Take up where `save` left off."""
        tensors = load_file(folder / _STATE_TENSORS)
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        self.encoder.model.load_state_dict(model)
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                state.setdefault(int(index), {})[name] = value
        numbers: dict[str, Any] = json.loads((folder / _STATE_NUMBERS).read_text())
        schedule = self._schedule.state_dict()
        self._schedule.load_state_dict({**schedule, "last_epoch": numbers["schedule_step"]})
        groups = self._optimizer.state_dict()["param_groups"]
        rate = self._spec.learning_rate * self._schedule.lr_lambdas[0](numbers["schedule_step"])
        self._optimizer.load_state_dict(
            {"state": state, "param_groups": [{**group, "lr": rate} for group in groups]}
        )
        self.next_epoch = numbers["next_epoch"]

    def _blocks(self, epoch: int) -> list[Block]:
        return epoch_blocks(
            self._queries.total,
            self._pool.total,
            queries_per_step=self._spec.queries_per_step,
            candidates_per_step=self._spec.candidates_per_step,
            seed=self._seed,
            epoch=epoch,
        )

    def _gathered(self, side: Side, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """The vectors (B, d) and sketches (B, D) of a block's rows, this worker's own with gradients."""
        size, rank = self._workers.size, self._workers.rank
        owners = rows % size
        mine = rows[owners == rank] // size
        vectors = self.encoder.vectors([side.windows[i] for i in mine])
        sketches = torch.from_numpy(side.sketches[mine].astype(np.float32)).to(self.encoder.device)
        return self._workers.gather(vectors, owners), self._workers.gather(sketches, owners)
