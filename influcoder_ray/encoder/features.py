"""What the head reads of a text: pooled states of two layers, and how long prompt and response are.

A loss gradient is a sum over the response's tokens, divided by their number: what stands in the response and
how long it is say more about it than what the text is about. A mean over all tokens, as encoders pool them,
shows neither.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

# Numbers of response tokens at which a feature of its own has its peak: 1, 2, 4, ... 512.
_OCTAVES = 10
_LENGTHS = 5 + _OCTAVES


@dataclass(frozen=True)
class Reading:
    """How features are read off an encoder's forward pass.

    Attributes:
        layers: whose hidden states are pooled; 0 are the embeddings.
        hidden: their width h.
        separator: id of the token between prompt and response; None where no one token separates them,
            and everything then counts as response.
        opening, closing: special tokens at the beginning and at the end of every text.
    """

    layers: tuple[int, ...]
    hidden: int
    separator: int | None
    opening: int
    closing: int

    @staticmethod
    def of(model: nn.Module, separator: Sequence[int], opening: int, closing: int) -> "Reading":
        """The middle and the last layer of a model, `separator` being the ids between prompt and response."""
        config: Any = model.config
        layers = int(config.num_hidden_layers)
        return Reading(
            layers=tuple(sorted({layers // 2, layers})),
            hidden=int(config.hidden_size),
            separator=separator[0] if len(separator) == 1 else None,
            opening=opening,
            closing=closing,
        )

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> "Reading":
        return Reading(**{**fields, "layers": tuple(fields["layers"])})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def groups(self) -> list[int]:
        """Widths of the groups that features come in: each layer's two means, then the lengths."""
        return [self.hidden] * (2 * len(self.layers)) + [_LENGTHS]

    @property
    def width(self) -> int:
        """F, the number of features."""
        return sum(self.groups)


class Layers(Protocol):
    """Hidden states by layer, (N, T, h) each."""

    def __getitem__(self, layer: int, /) -> Tensor: ...


def features(hidden_states: Layers, ids: Tensor, mask: Tensor, reading: Reading) -> Tensor:
    """Features (N, F) float32 of a batch of texts.

    Of each layer the mean of all token states and that of the response's, then the lengths.

    Args:
        hidden_states: of every layer (N, T, h), the embeddings first.
        ids: (N, T) token ids, padded on either side.
        mask: (N, T), 1 where there is a token.
    """
    real = mask.bool()
    place = mask.long().cumsum(1) - 1
    inside = real & (place >= reading.opening) & (place < mask.sum(1, keepdim=True) - reading.closing)
    none = torch.zeros_like(inside)
    separating = none if reading.separator is None else inside & (ids == reading.separator)
    separated = separating.any(1)
    # The place of the first separator, or the one before the text's first token.
    before = torch.where(
        separated, place.gather(1, separating.int().argmax(1, keepdim=True))[:, 0], reading.opening - 1
    )
    response = inside & (place > before[:, None])
    parts = []
    for layer in reading.layers:
        states = hidden_states[layer].float()
        parts += [_mean(states, real), _mean(states, response)]
    prompt_tokens = torch.where(separated, before - reading.opening, 0)
    return torch.cat([*parts, _lengths(response.sum(1), prompt_tokens, separated)], 1)


def traits(found: Tensor, reading: Reading) -> Tensor:
    """What familiarity is measured on, (N, t), of features (N, F): a part of what the head reads.

    Each layer's mean of all token states, as a unit vector, then the lengths as they are.
    """
    parts = found.split(reading.groups, dim=1)
    means = [functional.normalize(part, dim=1) for part in parts[: 2 * len(reading.layers) : 2]]
    return torch.cat([*means, parts[-1]], dim=1)


def text_vectors(found: Tensor, reading: Reading) -> Tensor:
    """What texts are about, as unit vectors (N, h), of their traits (N, t).

    They are the last layer's mean token states, as encoders of sentences pool them. Two texts with the same
    names in them are near each other, and training moves that little: what the head makes of it does not say.
    """
    return found[:, (len(reading.layers) - 1) * reading.hidden : len(reading.layers) * reading.hidden]


def _mean(states: Tensor, where: Tensor) -> Tensor:
    weights = where.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


def _lengths(response: Tensor, prompt: Tensor, separated: Tensor) -> Tensor:
    """(N, 5 + octaves): smooth functions of both lengths; how near the response's is to each power of 2."""
    octave = torch.log2(response.float().clamp(min=1))
    near = 1 - (octave[:, None] - torch.arange(_OCTAVES, device=octave.device)).abs()
    smooth = [octave, octave**2, 2**-octave, torch.log2(1 + prompt.float()), separated.float()]
    return torch.cat([torch.stack(smooth, 1), near.clamp(min=0)], 1)
