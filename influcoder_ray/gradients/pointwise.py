"""Rotary embeddings and gated activations as one operation each, where a model spells them out.

On a GPU they take longer than the attention between them. What computes them is tried out, not looked up:
the function that a family's attention calls for its rotary embedding, and each gated feed-forward module.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from influcoder_ray.gradients.fused import pointwise_kernels_on
from influcoder_ray.gradients.tryout import alike, probe

_ROTARY = "apply_rotary_pos_emb"
_GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")

# (queries, keys, cos, sin) -> both turned.
_Turn = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Pointwise:
    """What can be taken over in a model, and by which kernels."""

    kernels: Any
    rotary: Mapping[ModuleType, _Turn]
    """The function of each of transformers' modules that was found."""
    gated: Sequence[nn.Module]

    @contextmanager
    def fused(self) -> Iterator[None]:
        """While it lasts, these are computed by the kernels.

        A function is its family's: another model of the family, in another thread, has it from the kernels
        meanwhile too.
        """
        with ExitStack() as stack:
            for home, turn in self.rotary.items():
                setattr(home, _ROTARY, partial(_rotary, self.kernels, turn))
                stack.callback(setattr, home, _ROTARY, turn)
            for module in self.gated:
                module.forward = partial(_gated, self.kernels, module)
                stack.callback(delattr, module, "forward")
            yield


def pointwise_of(model: nn.Module, device: torch.device) -> Pointwise | None:
    """What of a model can be taken over on its device; None where there are no kernels."""
    kernels = pointwise_kernels_on(device)
    if kernels is None:
        return None
    homes = {sys.modules[type(module).__module__] for module in model.modules()}
    turns = {home: getattr(home, _ROTARY) for home in homes if hasattr(home, _ROTARY)}
    dtype = next(model.parameters()).dtype
    return Pointwise(
        kernels,
        {home: turn for home, turn in turns.items() if _is_rotary(turn, kernels, device, dtype)},
        [module for module in model.modules() if _is_gated(module, kernels)],
    )


def _rotary(
    kernels: Any, turn: _Turn, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *others: Any, **named: Any
) -> tuple[Tensor, Tensor]:
    whole = all(
        side.dim() == 4 and side.shape[2:] == cos.shape[1:] and len(cos) in (1, len(side)) for side in (q, k)
    )
    # Anything else than heads of the angles' width, behind the rows, is the model's own business.
    if others or named or not whole or cos.dim() != 3 or cos.shape != sin.shape or cos.shape[2] % 2:
        return turn(q, k, cos, sin, *others, **named)
    return kernels.Rotary.apply(q, cos, sin), kernels.Rotary.apply(k, cos, sin)


def _gated(kernels: Any, module: nn.Module, x: Tensor) -> Any:
    gate, up = module.gate_proj(x), module.up_proj(x)  # type: ignore[operator]
    return module.down_proj(kernels.GatedSilu.apply(gate, up))  # type: ignore[operator]


def _is_rotary(turn: _Turn, kernels: Any, device: torch.device, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    q, k, cos, sin = (
        torch.randn(shape, generator=generator).to(device, dtype)
        for shape in ((1, 4, 3, 8), (1, 2, 3, 8), (1, 3, 8), (1, 3, 8))
    )
    try:
        expected = turn(q, k, cos, sin)
    except (TypeError, RuntimeError, ValueError):
        # It takes something else: positions, or the angles of one head.
        return False
    found = _rotary(kernels, turn, q, k, cos, sin)
    return all(alike(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def _is_gated(module: nn.Module, kernels: Any) -> bool:
    if {name for name, _ in module.named_children()} != set(_GATED) or "forward" in vars(module):
        return False
    if not isinstance(module.gate_proj, nn.Linear):
        return False
    rows = probe(module.gate_proj.weight)
    with torch.no_grad():
        # At random weights the gates are small, where every activation is alike: its own is tried as well.
        activation = module.act_fn(rows) * rows  # type: ignore[operator]
        return alike(kernels.GatedSilu.apply(rows, rows), activation) and alike(
            _gated(kernels, module, rows), module(rows)
        )
