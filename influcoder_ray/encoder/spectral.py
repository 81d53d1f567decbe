"""Our recipe: the teacher's gradient directions, predicted from a text's features.

The first epoch takes no steps. The teacher's sketches are written in their leading directions, and a ridge
regression predicts these coordinates from features of the encoder as it is, for queries and pool apart: the
head, in closed form, out of every teacher pair at once. Each later epoch trains the encoder below the head.
What it is to learn are features from which a regression predicts texts that it has not seen; so a text is
predicted by a head fitted without the text's fold (cross-fitting), and after the epoch the heads are fitted
anew. Were the head trained by gradients together with the encoder, or fitted to the very texts of the step,
both would learn the training texts by heart: that was measured.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from influcoder_ray.encoder.blocks import Block
from influcoder_ray.encoder.directions import coordinates, leading_directions
from influcoder_ray.encoder.head import SIDES, Head, Side
from influcoder_ray.encoder.losses import pearson_loss, row_pearson_loss
from influcoder_ray.encoder.ridge import Sums, best_penalty, solve, total
from influcoder_ray.encoder.training import Examples, Training

# Keeps the draws of folds and anchors apart from those of blocks, which take (seed, epoch).
_FOLDS, _ANCHORS = 1 << 32, (1 << 32) + 1


class SpectralTraining(Training):
    """Fits the head in the first epoch, and trains the encoder below it in the others."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._sides: dict[Side, Examples] = {"queries": self._queries, "pool": self._pool}
        self._folds = {
            side: np.random.default_rng([self._seed, _FOLDS + i]).permutation(examples.total)
            % min(self._spec.folds, examples.total)
            for i, (side, examples) in enumerate(self._sides.items())
        }
        self._state: dict[str, Tensor] = {}
        self._coordinates: dict[Side, Tensor] = {}
        self._anchors: dict[Side, Tensor] = {}

    def train_epoch(self, report: Callable[[int, float], None] = lambda step, loss: None) -> float | None:
        loss = None if self.next_epoch == 1 else self._take_steps(report)
        found = {side: self._features(side) for side in SIDES}
        if loss is None:
            self._begin(found)
        self._fit_heads({side: self._fold_sums(side, features) for side, features in found.items()})
        self.next_epoch += 1
        return loss

    def loss(self, block: Block) -> Tensor:
        """How the block's predictions rank the anchors of the other side, and are ranked by them.

        An anchor stands with the teacher's own coordinates: what a step compares with is exact, and of
        any number, at the cost of the block's texts alone.
        """
        queries, exact_queries = self._predicted("queries", block.queries)
        pool, exact_pool = self._predicted("pool", block.pool)
        query_anchors, pool_anchors = self._anchors["queries"], self._anchors["pool"]
        pairs = (
            (queries @ pool_anchors.T, exact_queries @ pool_anchors.T),
            (query_anchors @ pool.T, query_anchors @ exact_pool.T),
        )
        return torch.stack([pearson_loss(*pair) + row_pearson_loss(*pair) for pair in pairs]).mean()

    def tensors(self) -> dict[str, Tensor]:
        return self._state | {f"head.{k}": v for k, v in self._head.state_dict().items()}

    def take(self, tensors: dict[str, Tensor]) -> None:
        self._state = {k: v for k, v in tensors.items() if not k.startswith("head.")}
        held = {k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")}
        sketch_width, dimensions = held["directions"].shape
        self.encoder.head = self.encoder.new_head(dimensions, sketch_width)
        self.encoder.head.load_state_dict(held)
        self._place()

    def _begin(self, found: dict[Side, Tensor]) -> None:
        """The directions, the features' scale and the penalties, from the encoder as it is."""
        directions = leading_directions(
            [side.sketches for side in self._sides.values()],
            self._spec.dimensions,
            workers=self._workers,
            seed=self._seed,
            device=self.encoder.device,
        )
        self.encoder.head = self.encoder.new_head(directions.shape[1], directions.shape[0])
        self._head.directions.copy_(directions)
        self._place()
        together = torch.cat([found[side] for side in SIDES]).double()
        sums = torch.stack([together.sum(0), together.square().sum(0)])
        self._workers.sum(sums)
        mean, square = sums / sum(side.total for side in self._sides.values())
        self._head.standardise_by(mean.float(), (square - mean.square()).float())
        penalties = [best_penalty(self._fold_sums(side, found[side])) for side in SIDES]
        self._state["penalties"] = torch.tensor(penalties, dtype=torch.float64)

    def _place(self) -> None:
        """This worker's coordinates, and the anchors' of all workers."""
        for number, (side, examples) in enumerate(self._sides.items()):
            own = coordinates(examples.sketches, self._head.directions)
            self._coordinates[side] = own
            draw = np.random.default_rng([self._seed, _ANCHORS + 2 + number])
            rows = np.sort(draw.permutation(examples.total)[: self._spec.anchors])
            mine, owners = self._mine(rows)
            self._anchors[side] = self._workers.gather(own[mine], owners)

    def _fit_heads(self, sums: dict[Side, list[Sums]]) -> None:
        """The head from all rows, and for each fold one from the others."""
        for number, side in enumerate(SIDES):
            penalty, folds = float(self._state["penalties"][number]), sums[side]
            self._head.weight[number], self._head.bias[number] = solve(total(folds), penalty)
            fits = [solve(total(folds, without=fold), penalty) for fold in range(len(folds))]
            self._state[f"{side}.weights"] = torch.stack([weights for weights, _ in fits]).float()
            self._state[f"{side}.biases"] = torch.stack([bias for _, bias in fits]).float()

    def _fold_sums(self, side: Side, features: Tensor) -> list[Sums]:
        """For each fold the sums over all workers' rows, from this worker's features (n, F)."""
        standardised = self._head.standardised(features)
        own = self._folds[side][self._workers.rank :: self._workers.size]
        sums = []
        for fold in range(int(self._folds[side].max()) + 1):
            rows = torch.from_numpy(np.flatnonzero(own == fold)).to(features.device)
            sums.append(Sums.of(standardised[rows], self._coordinates[side][rows]))
            for part in sums[-1].parts:
                self._workers.sum(part)
        return sums

    @property
    def _head(self) -> Head:
        if self.encoder.head is None:
            raise RuntimeError("the head is fitted in the first epoch")
        return self.encoder.head

    def _features(self, side: Side) -> Tensor:
        """The features (n, F) of this worker's rows."""
        with torch.no_grad():
            return self.encoder.features(self._sides[side].windows)

    def _predicted(self, side: Side, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Predicted and exact coordinates (B, d) of a block's rows, this worker's own with gradients."""
        mine, owners = self._mine(rows)
        windows = [self._sides[side].windows[i] for i in mine]
        features = self._head.standardised(self.encoder.features(windows))
        folds = torch.from_numpy(self._folds[side][rows[owners == self._workers.rank]]).to(features.device)
        weights, biases = self._state[f"{side}.weights"], self._state[f"{side}.biases"]
        # By every fold's head, (n, folds, d): fewer numbers than a head a text.
        by_all = torch.einsum("nf,kfd->nkd", features, weights) + biases
        predicted = by_all[torch.arange(len(folds), device=folds.device), folds]
        exact = self._coordinates[side][mine]
        return self._workers.gather(predicted, owners), self._workers.gather(exact, owners)
