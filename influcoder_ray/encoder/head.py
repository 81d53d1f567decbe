"""The head: two linear maps from features to vectors whose cosine is the predicted influence.

Queries and pool examples have a map each, since a text's gradient as a query need not be predicted by what
predicts it as a training example. A map gives the coordinates of the gradient's direction that can be
predicted, which are shorter than 1; a unit vector is made of them with one number more, which the other
side has as 0:
    query -> (z_q, sqrt(1 - |z_q|^2), 0)    pool -> (z_p, 0, sqrt(1 - |z_p|^2))
so that the cosine of a query's and a pool example's vector is z_q . z_p, length included. A text whose
gradient is known has such a vector too, without any prediction: z is then the coordinates of its sketch.

The coordinates stand in the order of how much of the gradients they hold, and each is predicted by itself. So
the foremost of them are a head of their own, without training anew; other encoders have to be trained for it
(Matryoshka representations: Kusupati et al., 2022, arXiv 2205.13147).
"""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from influcoder_ray.encoder.directions import coordinates
from influcoder_ray.encoder.features import Reading
from influcoder_ray.tables.place import Place

Side = Literal["queries", "pool"]
SIDES: tuple[Side, Side] = ("queries", "pool")
# Inside an encoder's folder, as sentence-transformers lays out a module.
FOLDER = "1_InfluenceHead"
_TENSORS, _CONFIG = "head.safetensors", "config.json"
# Added to each feature's standard deviation: one that hardly varies must not be blown up.
_LEAST_SPREAD = 1e-3


class Head(nn.Module):
    """Standardised features times a matrix for each side.

    Attributes:
        mean, scale: (F,) of the training texts' features of both sides together; each group of features
            is scaled to a mean square length of 1, so that wide groups do not outweigh narrow ones.
        weight: (2, F, d), bias: (2, d), of queries and pool.
        directions: (D, d), what the coordinates lie along: orthonormal, of sketches D wide.
    """

    def __init__(self, reading: Reading, dimensions: int, sketch_width: int) -> None:
        super().__init__()
        self.reading = reading
        self.mean: Tensor
        self.scale: Tensor
        self.weight: Tensor
        self.bias: Tensor
        self.directions: Tensor
        self.register_buffer("mean", torch.zeros(reading.width))
        self.register_buffer("scale", torch.ones(reading.width))
        self.register_buffer("weight", torch.zeros(2, reading.width, dimensions))
        self.register_buffer("bias", torch.zeros(2, dimensions))
        self.register_buffer("directions", torch.zeros(sketch_width, dimensions))

    @property
    def dimensions(self) -> int:
        """Numbers in a unit vector: d + 2."""
        return self.bias.shape[1] + 2

    def standardise_by(self, mean: Tensor, variance: Tensor) -> None:
        """Take the (F,) mean and variance of features as what to standardise by."""
        widths = torch.cat([torch.full((n,), float(n)) for n in self.reading.groups]).to(mean.device)
        self.mean.copy_(mean)
        self.scale.copy_((variance.clamp(min=0).sqrt() + _LEAST_SPREAD) * widths.sqrt())

    def standardised(self, features: Tensor) -> Tensor:
        """(N, F) of (N, F)."""
        return (features - self.mean) / self.scale

    def coordinates(self, features: Tensor, side: Side) -> Tensor:
        """The predicted gradient directions (N, d) of features (N, F)."""
        number = SIDES.index(side)
        return self.standardised(features) @ self.weight[number] + self.bias[number]

    def forward(self, features: Tensor, side: Side) -> Tensor:
        """Unit vectors (N, d + 2) of features (N, F)."""
        return _unit(self.coordinates(features, side), side)

    def of_sketches(self, sketches: np.ndarray, side: Side) -> Tensor:
        """Unit vectors (N, d + 2) of texts whose sketches (N, D), of any length, are known."""
        return _unit(coordinates(sketches, self.directions), side)

    def foremost(self, dimensions: int) -> "Head":
        """The head of the foremost directions alone; its vectors have `dimensions` + 2 numbers.

        Raises:
            ValueError: the head does not have so many.
        """
        sketch_width, held = self.directions.shape
        if not 1 <= dimensions <= held:
            raise ValueError(f"dimensions is {dimensions}; the head has {held}")
        head = Head(self.reading, dimensions, sketch_width).to(self.bias.device)
        along = {name: getattr(self, name)[..., :dimensions] for name in ("weight", "bias", "directions")}
        head.load_state_dict(self.state_dict() | along)
        return head

    def save(self, folder: Path) -> None:
        """Write `config.json` and `head.safetensors` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(tensors, folder / _TENSORS)
        (folder / _CONFIG).write_text(json.dumps(self.reading.to_dict(), indent=2))

    @staticmethod
    def load(folder: Path) -> "Head":
        """The head of a folder that `save` wrote."""
        tensors = load_file(folder / _TENSORS)
        reading = Reading.from_dict(json.loads((folder / _CONFIG).read_text()))
        sketch_width, dimensions = tensors["directions"].shape
        head = Head(reading, dimensions, sketch_width)
        head.load_state_dict(tensors)
        return head


def _unit(coordinates: Tensor, side: Side) -> Tensor:
    """Unit vectors (N, d + 2) of coordinates (N, d); more than all of a direction cannot lie along some."""
    within = coordinates / coordinates.norm(dim=1, keepdim=True).clamp(min=1)
    rest = (1 - within.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
    nothing = torch.zeros_like(rest)
    ends = (rest, nothing) if side == "queries" else (nothing, rest)
    return torch.cat([within, *ends], 1)


def has_head(folder: Path) -> bool:
    return (folder / FOLDER / _TENSORS).is_file()


def count_directions(folder: Place) -> int:
    """How many directions the head of an encoder's folder has; 0 where it has no head.

    The weights stay where they are, be it S3: the file begins with the shapes of its tensors. Source: the
    safetensors format, eight bytes for the length of a JSON header, and the header.
    """
    file = folder / FOLDER / _TENSORS
    if not file.exists():
        return 0
    header = json.loads(file.read_range(8, int.from_bytes(file.read_range(0, 8), "little")))
    return int(header["directions"]["shape"][1])
