"""Influcoder's own recipe: the cosines of a block's pairs are drawn towards their influences.

Source: Influcoder, arXiv 2606.13668.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from influcoder_ray.encoder.blocks import Block
from influcoder_ray.encoder.losses import distillation_loss
from influcoder_ray.encoder.training import Examples, Training


class PairTraining(Training):
    """Trains a pooled encoder on blocks of queries and candidates; each pair's target is its influence."""

    def train_epoch(self, report: Callable[[int, float], None] = lambda step, loss: None) -> float:
        loss = self._take_steps(report)
        self.next_epoch += 1
        return loss

    def loss(self, block: Block) -> Tensor:
        query_vectors, query_sketches = self._gathered(self._queries, block.queries)
        pool_vectors, pool_sketches = self._gathered(self._pool, block.pool)
        return distillation_loss(
            query_vectors @ pool_vectors.T,
            query_sketches @ pool_sketches.T,
            listwise_share=self._spec.listwise_share,
            temperature=self._spec.temperature,
        )

    def _gathered(self, side: Examples, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """The vectors (B, d) and sketches (B, D) of a block's rows, this worker's own with gradients."""
        mine, owners = self._mine(rows)
        vectors = self.encoder.vectors([side.windows[i] for i in mine])
        sketches = torch.from_numpy(side.sketches[mine].astype(np.float32)).to(self.encoder.device)
        return self._workers.gather(vectors, owners), self._workers.gather(sketches, owners)
