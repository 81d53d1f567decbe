"""Attention that keeps packed examples apart, inside any model that lets its attention be chosen.

Each example attends to itself alone, in an attention of its own, so that packing costs nothing: one
masked attention over the whole row would compute, and throw away, every pair of tokens of different
examples. Whether a model gives the same numbers packed as padded is tried out, not looked up in a list.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PretrainedConfig

from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.layout import Layout, Run, lay_out

_NAME = "influcoder_packed"
# The keyword under which the runs of a layout travel through a model's forward to its attention.
_RUNS = "packed_runs"
# And one under which a set travels that gets every window of which the model tells its attention.
_TOLD = "packed_windows"
# Parts of attention that packed attention does not compute, by the name that transformers gives them.
_BEYOND = {
    "softcap": "caps its attention",
    "s_aux": "has attention sinks",
    "position_bias": "biases attention",
}
# What a model raises whose own code reads the mask that packed attention does without.
WITHOUT_A_MASK = (TypeError, AttributeError)
_PROBE_LENGTHS = (5, 3, 3, 7)
# Logits that saw another example differ by far more than these shares, rounding by far less.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}


class CannotPack(Exception):
    """Why a model's examples cannot be packed."""


def why_not_packed(model: nn.Module, longest: int) -> str | None:
    """What keeps a model's examples from being packed; None if nothing does.

    A few short examples are put through the model both ways, and their logits compared. They are too short to
    show how far a token looks back. Packed attention has no masks, so the model has to tell it.

    Args:
        longest: tokens of the longest example that will come.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "the model takes no positions"
    parameter = next(model.parameters())
    told: set[int | None] = set()
    padded = _logits(model, lay_out(_probe(), packed=False, device=parameter.device), told)
    try:
        packed = _logits(model, lay_out(_probe(), packed=True, device=parameter.device), told)
    except CannotPack as reason:
        return str(reason)
    except WITHOUT_A_MASK as error:
        return f"the model does not run without a mask ({str(error).splitlines()[0]})"
    if not told:
        return "the model computes its attention itself, or has none"
    window = _narrowest_window(model.config.get_text_config())  # type: ignore[operator,union-attr]
    if window is not None and window < longest and told <= {None}:
        return "the model does not tell its attention how far to look"
    difference = float((packed - padded).norm() / padded.norm())
    return None if difference <= _TOLERANCE[parameter.dtype] else "its packed examples see each other"


@contextmanager
def inputs_of(model: nn.Module, layout: Layout) -> Iterator[dict[str, Any]]:
    """The arguments of the model's forward for a batch, and, while it lasts, the attention they need.

    Raises:
        CannotPack: from the forward pass, see `why_not_packed`.
    """
    if layout.positions is None:
        yield {"input_ids": layout.ids}
        return
    config: PretrainedConfig = model.config
    before = config._attn_implementation
    try:
        model.set_attn_implementation(_NAME)  # type: ignore[operator]
    except ValueError as error:
        raise CannotPack("its attention cannot be chosen") from error
    try:
        yield {"input_ids": layout.ids, "position_ids": layout.positions, _RUNS: layout.runs}
    finally:
        model.set_attn_implementation(before)  # type: ignore[operator]


def _packed_attention(
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
    """Causal attention within each example of one row.

    Args:
        query: (1, heads, T, width); key and value may have fewer heads, each shared by a group.
        sliding_window: how many tokens back, itself included, a token looks; all if None.

    Returns:
        (1, T, heads, width).

    Raises:
        CannotPack: the model asks for what is not computed here.
    """
    for name, what in _BEYOND.items():
        if others.get(name) is not None:
            raise CannotPack(f"the model {what}")
    runs: Sequence[Run] | None = others.get(_RUNS)
    if runs is None:
        raise CannotPack("the model does not hand arguments on to its attention")
    if _TOLD in others:
        others[_TOLD].add(sliding_window)
    if attention_mask is not None:
        raise CannotPack("the model masks its attention itself")
    sizes = [run.count * run.length for run in runs]
    # Split, not cut out: the gradient of a part cut out is as large as the whole, that of a split is not. One
    # part is the whole, whose gradient would be copied all the same.
    sides = zip(
        *(side[0].split(sizes, dim=1) if len(sizes) > 1 else (side[0],) for side in (query, key, value)),
        strict=True,
    )
    parts = []
    for run, part in zip(runs, sides, strict=True):
        # (heads, tokens, width) -> (examples, heads, length, width)
        q, k, v = (side.unflatten(1, (run.count, run.length)).transpose(0, 1) for side in part)
        windowed = sliding_window is not None and run.length > sliding_window
        if q.is_cuda and (windowed or q.dtype == torch.float32):
            # The GPU's fused kernels for these have no groups; what is not fused keeps the whole matrix.
            k, v = (side.repeat_interleave(q.shape[1] // side.shape[1], dim=1) for side in (k, v))
        out = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_window(run.length, sliding_window, q.device) if windowed else None,
            is_causal=not windowed,
            scale=scaling,
            enable_gqa=k.shape[1] != q.shape[1],
        )
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return (torch.cat(parts) if len(parts) > 1 else parts[0])[None], None


def _window(length: int, width: int | None, device: torch.device) -> Tensor:
    """Whether token i looks at token j: bool (length, length)."""
    back = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (back >= 0) & (back < (width or length))


def _narrowest_window(config: PretrainedConfig) -> int | None:
    """How many tokens back a token looks in some layers; None where each looks at all."""
    if set(getattr(config, "layer_types", None) or ["unknown"]) == {"full_attention"}:
        return None
    sizes = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((size for size in sizes if size), default=None)


def _probe() -> list[Tokens]:
    """Short examples of different tokens, the same for every model."""
    ids = torch.arange(sum(_PROBE_LENGTHS)).split(list(_PROBE_LENGTHS))
    return [Tokens(tuple((part * 37 % 101 + 3).tolist()), 1, False) for part in ids]


def _logits(model: nn.Module, layout: Layout, told: set[int | None]) -> Tensor:
    """The logits (labelled tokens, vocabulary) of a batch; packed attention adds to `told`."""
    with torch.no_grad(), inputs_of(model, layout) as arguments:
        if layout.positions is not None:
            arguments[_TOLD] = told
        logits: Tensor = model(**arguments, use_cache=False).logits
    return logits.flatten(0, -2)[layout.labelled].float()


AttentionInterface.register(_NAME, _packed_attention)
