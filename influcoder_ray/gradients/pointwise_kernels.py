"""Rotary positions and gated activations in one pass over their numbers each, forward and backward.

transformers writes a rotary embedding (Su et al., arXiv 2104.09864, equation 34) as some ten operations and a
gated activation (Shazeer, arXiv 2002.05202, equation 6) as two, each of which reads and writes the whole
tensor. Here they are computed in float32 and rounded once.

Compiled by Triton; imported only where `fused.pointwise_kernels_on` has said that it can be.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ENTRIES = 2048


class Rotary(torch.autograd.Function):
    """A rotary embedding of queries or keys (N, heads, T, width), of any strides but 1 for the last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`x` turned by angles whose `cos` and `sin` are (N or 1, T, width)."""
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Turned back, for the transpose of a rotation is its inverse."""
        cos, sin = ctx.saved_tensors
        return _rotated(gradients[0], cos, sin, back=True), None, None


class GatedSilu(torch.autograd.Function):
    """silu(gate) * up; keeps these two and nothing between them."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Both of one shape, contiguous."""
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        _gated[_programs(out)](gate, up, out, out.numel(), ENTRIES=_ENTRIES)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Of both."""
        gate, up = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        _gated_back[_programs(gate)](gate, up, gradient, of_gate, of_up, gate.numel(), ENTRIES=_ENTRIES)
        return of_gate, of_up


def _programs(tensor: Tensor) -> tuple[int]:
    return (triton.cdiv(tensor.numel(), _ENTRIES),)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    rows, heads, tokens, width = x.shape
    x, cos, sin = (side if side.stride(-1) == 1 else side.contiguous() for side in (x, cos, sin))
    # Laid out as a projection's outputs are, one token's heads together.
    out = torch.empty(rows, tokens, heads, width, dtype=x.dtype, device=x.device).transpose(1, 2)
    _rotate[(tokens, rows)](
        x,
        cos,
        sin,
        out,
        heads,
        *x.stride()[:3],
        *(0 if side.shape[0] == 1 else side.stride(0) for side in (cos, sin)),
        cos.stride(1),
        sin.stride(1),
        *out.stride()[:3],
        HALF=width // 2,
        HALF_BLOCK=triton.next_power_of_2(width // 2),
        HEADS_BLOCK=min(32, triton.next_power_of_2(heads)),
        BACK=back,
    )
    return out


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    x,
    cos,
    sin,
    out,
    heads,
    x_row,
    x_head,
    x_token,
    cos_row,
    sin_row,
    cos_token,
    sin_token,
    out_row,
    out_head,
    out_token,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    BACK: tl.constexpr,
):
    # A long batch has more numbers than 32 bits count.
    token = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, HALF_BLOCK)
    within = column < HALF
    of_cos = cos + row * cos_row + token * cos_token + column
    of_sin = sin + row * sin_row + token * sin_token + column
    first_cos = tl.load(of_cos, mask=within, other=0.0).to(tl.float32)
    second_cos = tl.load(of_cos + HALF, mask=within, other=0.0).to(tl.float32)
    first_sin = tl.load(of_sin, mask=within, other=0.0).to(tl.float32)
    second_sin = tl.load(of_sin + HALF, mask=within, other=0.0).to(tl.float32)
    if BACK:
        into_first, into_second = second_sin, -first_sin
    else:
        into_first, into_second = -first_sin, second_sin
    for start in range(0, heads, HEADS_BLOCK):
        head = start + tl.arange(0, HEADS_BLOCK)
        mask = (head < heads)[:, None] & within[None, :]
        of_x = x + row * x_row + token * x_token + head[:, None].to(tl.int64) * x_head + column[None, :]
        first = tl.load(of_x, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(of_x + HALF, mask=mask, other=0.0).to(tl.float32)
        of_out = (
            out + row * out_row + token * out_token + head[:, None].to(tl.int64) * out_head + column[None, :]
        )
        turned = first * first_cos[None, :] + second * into_first[None, :]
        tl.store(of_out, turned.to(out.dtype.element_ty), mask=mask)
        turned = second * second_cos[None, :] + first * into_second[None, :]
        tl.store(of_out + HALF, turned.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gated(gate, up, out, entries, ENTRIES: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    mask = place < entries
    g = tl.load(gate + place, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gated_back(gate, up, gradient, of_gate, of_up, entries, ENTRIES: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    mask = place < entries
    g = tl.load(gate + place, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(of_gate + place, (d * u * s * (1 + g * (1 - s))).to(of_gate.dtype.element_ty), mask=mask)
    tl.store(of_up + place, (d * g * s).to(of_up.dtype.element_ty), mask=mask)
