"""Texts of a batch in one row without padding, inside any encoder that lets its attention be chosen.

They follow each other, positions begin anew with each, and each attends to itself alone, in an attention of
its own and without a mask. Whether an encoder gives the same states packed as padded is tried out, not looked
up in a list; one that does not is padded.

Shapes: N texts, T tokens of the longest, S tokens of all, h state width.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

_NAME = "influcoder_packed_texts"
# The keyword under which the lengths of a batch travel through a model's forward to its attention.
_RUNS = "packed_texts"
# Parts of attention that packed attention does not compute, by the name that transformers gives them.
_BEYOND = ("softcap", "s_aux", "position_bias")
_PROBE_LENGTHS = (7, 5, 5, 3)
# A probe's longest text, where the model looks no farther than a window of some tokens; and the widest window
# that is tried.
_WINDOWS_OF_PROBE, _WIDEST = 3, 256
# States that saw another text differ by far more than this share, rounding by far less.
_TOLERANCE = 1e-3


class CannotPack(Exception):
    """Why an encoder's texts cannot be packed."""


@dataclass(frozen=True)
class Packed:
    """A batch of texts as one row of the model's input.

    Attributes:
        ids, positions: (1, S).
        runs: how many texts in turn have one length, and that length.
        real: (N, T), where there is a token.
    """

    ids: Tensor
    positions: Tensor
    runs: tuple[tuple[int, int], ...]
    real: Tensor

    @staticmethod
    def of(ids: Tensor, mask: Tensor, *, first_position: int) -> "Packed":
        """Ids (N, T) without their padding, which is on the right.

        Args:
            mask: (N, T), 1 where there is a token.
            first_position: where the model's positions begin.
        """
        real = mask.bool()
        positions = (mask.cumsum(1) - 1 + first_position)[real]
        lengths = groupby(mask.sum(1).tolist())
        runs = tuple((len(list(group)), length) for length, group in lengths if length)
        return Packed(ids[real][None], positions[None], runs, real)

    def padded(self, row: Tensor) -> Tensor:
        """What belongs to each token, (1, S, h), as (N, T, h); zeros where a text has none."""
        found = row.new_zeros(*self.real.shape, row.shape[-1])
        found[self.real] = row[0]
        return found

    @property
    def arguments(self) -> dict[str, Any]:
        """What the model's forward is called with."""
        return {"input_ids": self.ids, "position_ids": self.positions, _RUNS: self.runs}


@dataclass(frozen=True)
class PackedOutputs:
    """A model's outputs for packed texts, under the names that they have for padded ones.

    States are padded when they are asked for: of most layers nobody does.
    """

    packed: Packed
    outputs: Any

    @property
    def last_hidden_state(self) -> Tensor:
        """(N, T, h)."""
        return self.packed.padded(self.outputs.last_hidden_state)

    @property
    def hidden_states(self) -> "_PaddedLayers":
        """By layer, (N, T, h) each; the embeddings first."""
        return _PaddedLayers(self.packed, self.outputs.hidden_states)


@dataclass(frozen=True)
class _PaddedLayers:
    packed: Packed
    rows: Sequence[Tensor]

    def __getitem__(self, layer: int) -> Tensor:
        return self.packed.padded(self.rows[layer])


def why_not_packed(model: nn.Module) -> str | None:
    """What keeps an encoder's texts from being packed; None if nothing does.

    A few texts are put through it both ways, and their states compared; one of them is longer than the model
    looks, where that is not far.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "it takes no positions"
    looks = getattr(model.config, "sliding_window", None)
    if looks is not None and looks > _WIDEST:
        return f"its window of attention is wider than {_WIDEST} tokens"
    lengths = [*([_WINDOWS_OF_PROBE * looks] if looks else []), *_PROBE_LENGTHS]
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    words = min(101, int(model.config.vocab_size) - 3)  # type: ignore[union-attr,arg-type]
    ids = (torch.arange(mask.numel()) * 37 % words + 3).view_as(mask) * mask
    packed = Packed.of(ids, mask, first_position=first_position(model))
    try:
        with torch.inference_mode():
            padded = model(input_ids=ids, attention_mask=mask).last_hidden_state
            with packing(model):
                found = model(**packed.arguments).last_hidden_state
    except CannotPack as reason:
        return str(reason)
    expected = padded[packed.real]
    if float((found[0] - expected).norm()) > _TOLERANCE * float(expected.norm()):
        return "its packed texts see each other, or count their positions otherwise"
    return None


def first_position(model: nn.Module) -> int:
    """The number of a text's first position: RoBERTa and its kin begin to count behind the padding's id."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


@contextmanager
def packing(model: nn.Module) -> Iterator[None]:
    """While it lasts, the model takes packed texts, and nothing else.

    Raises:
        CannotPack: its attention cannot be chosen; or from its forward pass, see `why_not_packed`.
    """
    before = model.config._attn_implementation  # type: ignore[union-attr]
    try:
        model.set_attn_implementation(_NAME)  # type: ignore[operator]
    except ValueError as error:
        raise CannotPack("its attention cannot be chosen") from error
    try:
        yield
    finally:
        model.set_attn_implementation(before)  # type: ignore[operator]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention in both directions within each text of one row.

    Args:
        query, key, value: (1, heads, S, width).
        sliding_window: how many tokens to either side, itself included, a token looks; all if None.

    Returns:
        (1, S, heads, width).

    Raises:
        CannotPack: the model asks for what is not computed here.
    """
    runs: tuple[tuple[int, int], ...] | None = others.get(_RUNS)
    if runs is None:
        raise CannotPack("it does not hand arguments on to its attention")
    if attention_mask is not None or any(others.get(name) is not None for name in _BEYOND):
        raise CannotPack("it masks, biases or caps its attention")
    if getattr(module, "is_causal", False) or key.shape[1] != query.shape[1]:
        raise CannotPack("it looks back alone, or shares its keys")
    sides = zip(
        *(side[0].split([n * length for n, length in runs], dim=1) for side in (query, key, value)),
        strict=True,
    )
    parts = []
    for (count, length), part in zip(runs, sides, strict=True):
        # (heads, tokens, width) -> (texts, heads, length, width)
        q, k, v = (side.unflatten(1, (count, length)).transpose(0, 1) for side in part)
        near = None if sliding_window is None else _near(length, sliding_window)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=near, scale=scaling)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


def _near(length: int, width: int) -> Tensor | None:
    """Whether token i looks at token j: bool (length, length); None where each looks at all."""
    if length <= width:
        return None
    places = torch.arange(length)
    return (places[:, None] - places).abs() < width


AttentionInterface.register(_NAME, _attention)
