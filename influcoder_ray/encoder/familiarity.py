"""Familiarity: how near a text lies to what the encoder was trained on, measured out on what it was not.

The raw measure is the mean distance of a text's traits from those of its nearest training texts (Sun et
al. 2022, arXiv 2204.06507). Its scale means nothing by itself, so it is read off texts of the same kind
that were in no training step: a familiarity of 5 per cent says that one in twenty of those lies as far out
or farther. That is a conformal p-value (Vovk et al. 2005; Bates et al. 2023, arXiv 2104.08279), drawn
through with straight lines so that texts farther out than all of those still differ.

Shapes: N texts, R references, V held-out texts, K knots, L lengths, t trait width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

# What all lengths together weigh against each layer's states, which are unit vectors: measured, and the
# same within a factor of two either way.
_LENGTHS_WEIGHT = 0.3
# Standard deviations beyond which one length is as far out as another.
_FARTHEST_LENGTH = 10.0
# Added to each length's standard deviation: one that hardly varies must not be blown up.
_LEAST_SPREAD = 1e-3
# More than any two texts can be apart: the states of two layers by 2 each, all lengths at their farthest.
_FARTHEST = 10.0
# Distances that differ by less are taken as equal, so that no slope is steep enough to magnify the
# rounding in which one text's traits differ from batch to batch.
_RESOLUTION = 1e-5
# Distances in memory at once: 64 MiB of them.
_DISTANCES = 1 << 24


@dataclass(frozen=True, eq=False)
class Familiarity:
    """What texts of one kind (pool or queries) are measured against.

    Attributes:
        references: (R, t) float32, placed training texts; they have the digits of float16, in which they are
            stored.
        mean, scale: (L,) float32, by which the lengths among traits are standardised.
        knots: (2, K) float64, distance, rising, and per cent of held-out texts as far out or farther.
        neighbours: how many of the nearest references a text is compared with.
    """

    references: Tensor
    mean: Tensor
    scale: Tensor
    knots: np.ndarray
    neighbours: int

    @staticmethod
    def fit(training: np.ndarray, held_out: np.ndarray, *, lengths: int, neighbours: int) -> "Familiarity":
        """Measure against `training` (M, t), calibrated on `held_out` (V, t).

        Args:
            lengths: L, how many of the traits, the last ones, are lengths.

        Raises:
            ValueError: either is empty.
        """
        if not len(training) or not len(held_out):
            raise ValueError(
                f"{len(training)} training and {len(held_out)} held-out texts; at least one of each is needed"
            )
        texts = torch.from_numpy(training)
        tail = texts[:, texts.shape[1] - lengths :].double()
        spread = (tail.std(0, correction=0) + _LEAST_SPREAD) * lengths**0.5 / _LENGTHS_WEIGHT
        bare = Familiarity(
            texts[:0], tail.mean(0).float(), spread.float(), np.array([[0, _FARTHEST], [100, 0]]), neighbours
        )
        measure = replace(bare, references=bare._placed(texts).half().float())
        return replace(measure, knots=_knots(measure.distance(torch.from_numpy(held_out)).numpy()))

    def distance(self, traits: Tensor) -> Tensor:
        """The mean distance (N,) float32 of each text, by its traits (N, t), from its nearest references."""
        nearest = min(self.neighbours, len(self.references))
        parts = []
        for texts in self._placed(traits).split(max(1, _DISTANCES // len(self.references))):
            # By products, which round where two texts are alike; so this chooses, and is not the distance.
            rough = self.references.square().sum(1) - 2 * texts @ self.references.T
            places = torch.topk(rough, nearest, dim=1, largest=False).indices
            each = [(texts - self.references[places[:, i]]).norm(dim=1) for i in range(nearest)]
            parts.append(torch.stack(each, 1).sort(dim=1).values.mean(1))
        return torch.cat(parts)

    def percent(self, distance: np.ndarray) -> np.ndarray:
        """The familiarity (N,) float32, in [0, 100], of texts by their distance (N,).

        The i-th farthest of V held-out texts has 100 i / (V + 1), equally far ones their mean. Between them
        it goes in straight lines, and on to 100 at no distance and to 0 at more than there can be.
        """
        return np.interp(distance, *self.knots).astype(np.float32)

    def to(self, device: torch.device) -> "Familiarity":
        """The same, measured on a device."""
        tensors = {name: getattr(self, name).to(device) for name in ("references", "mean", "scale")}
        return replace(self, **tensors)

    def _placed(self, traits: Tensor) -> Tensor:
        """Traits (N, t) with their lengths standardised, cut and weighted: what distances are taken of."""
        states, lengths = traits.float().split([traits.shape[1] - len(self.mean), len(self.mean)], dim=1)
        limit = _FARTHEST_LENGTH * _LENGTHS_WEIGHT / len(self.mean) ** 0.5
        return torch.cat([states, ((lengths - self.mean) / self.scale).clamp(-limit, limit)], dim=1)


def familiarity_bytes(measures: Mapping[str, Familiarity]) -> bytes:
    """Measures by name as the bytes of one safetensors file."""
    tensors = {}
    for name, measure in measures.items():
        tensors[f"{name}.references"] = measure.references.cpu().half()
        tensors[f"{name}.mean"] = measure.mean.cpu()
        tensors[f"{name}.scale"] = measure.scale.cpu()
        tensors[f"{name}.knots"] = torch.from_numpy(measure.knots)
        tensors[f"{name}.neighbours"] = torch.tensor(measure.neighbours)
    return save(tensors)


def read_familiarity(path: Path) -> dict[str, Familiarity]:
    """The measures of a file, by name."""
    tensors = load_file(path)
    return {
        name: Familiarity(
            references=tensors[f"{name}.references"].float(),
            mean=tensors[f"{name}.mean"],
            scale=tensors[f"{name}.scale"],
            knots=tensors[f"{name}.knots"].numpy(),
            neighbours=int(tensors[f"{name}.neighbours"]),
        )
        for name in sorted({key.split(".")[0] for key in tensors})
    }


def _knots(distance: np.ndarray) -> np.ndarray:
    """The knots (2, K) of held-out texts' distances (V,)."""
    steps = np.round(np.sort(distance) / _RESOLUTION)
    levels, first, counts = np.unique(steps, return_index=True, return_counts=True)
    ranks = len(steps) - first - (counts - 1) / 2
    ends = np.array([-_RESOLUTION]), np.array([_FARTHEST])
    return np.stack(
        [
            np.concatenate([ends[0], levels * _RESOLUTION, ends[1]]),
            np.concatenate([[100], 100 * ranks / (len(steps) + 1), [0]]),
        ]
    )
