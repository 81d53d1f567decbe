"""Linear layers on a CPU while their weights stay as they are: packed once, in float32 or in int8.

float32: the weights lie as oneDNN's kernels read them, which computes the same sums in another order.

int8: weights are rounded to 8 bits, each output's by a scale of its own, inputs to 7 bits as they come, each
token's between its own least and largest number, so that no token depends on its neighbours. With x the
numbers of a token, l the least and r their range, W the weights and b the bias,
    q = round(127 (x - l) / r)      y = r (q / 127) W + l sum(W) + b
7 bits are what instructions without a wider sum (vpmaddubsw) add up without an overflow.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

# A product whose sums overflow, or whose kernel is not there, is off by far more than this share.
_TOLERANCE = 0.05
# Rows of the input that the packed weights are made for; others are computed too.
_ROWS = 2048
_LEVELS = 127
# Added to a token's range, which may be nothing.
_LEAST_RANGE = 1e-12


@cache
def can_compute(*, int8: bool) -> bool:
    """Whether this build of torch, on this machine, has the kernels: a small layer is tried."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 48)
    x = torch.randn(4, 64, generator=generator)
    with torch.inference_mode():
        layer.weight.copy_(torch.randn(48, 64, generator=generator))
        expected = layer(x)
        try:
            with fast_linears(nn.Sequential(layer), int8=int8):
                found = layer(x)
        except (AttributeError, RuntimeError, NotImplementedError):
            return False
    return float((found - expected).norm()) <= _TOLERANCE * float(expected.norm())


@contextmanager
def fast_linears(model: nn.Module, *, int8: bool) -> Iterator[None]:
    """While it lasts, the model's linear layers compute with packed weights, and carry no gradients.

    A fault within leaves them as they were.
    """
    rounded = _Rounded()
    layers = [
        (layer, parent)
        for parent in model.modules()
        for layer in parent.children()
        if type(layer) is nn.Linear
    ]
    with torch.inference_mode():
        forwards = [_in_int8(*pair, rounded) if int8 else _in_float32(pair[0]) for pair in layers]
    try:
        for (layer, _), forward in zip(layers, forwards, strict=True):
            # An instance's own forward comes before its class's.
            layer.forward = forward  # type: ignore[method-assign]
        yield
    finally:
        for layer, _ in layers:
            layer.__dict__.pop("forward", None)


def _in_float32(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)

    def forward(x: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")
        return found

    return forward


class _Rounded:
    """The last input that was rounded: queries, keys and values of one module share it."""

    def __init__(self) -> None:
        self._of: tuple[Tensor, nn.Module] | None = None
        self._found: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, module: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Input (..., I) in 7 bits, (S, I) uint8, and the least number and the range (S, 1) of each token."""
        if self._found is None or self._of is None or self._of[0] is not x or self._of[1] is not module:
            flat = x.view(-1, x.shape[-1])
            # These operations and no others that say the same: a few times as fast where torch has no vectors.
            least, largest = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
            reach = (largest - least).add_(_LEAST_RANGE)
            steps = _LEVELS / reach
            # A half is added, since the fraction is dropped.
            whole = (flat * steps).add_(0.5 - least * steps).to(torch.int8).view(torch.uint8)
            self._of, self._found = (x, module), (whole, least, reach)
        return self._found


def _in_int8(layer: nn.Linear, parent: nn.Module, rounded: _Rounded) -> Callable[[Tensor], Tensor]:
    scale = layer.weight.detach().abs().amax(1).clamp(min=_LEAST_RANGE) / _LEVELS
    whole = (layer.weight.detach() / scale[:, None]).round().to(torch.int8)
    sums = whole.float().sum(1) * scale
    bias = torch.zeros_like(sums) if layer.bias is None else layer.bias.detach()
    weight = torch.ops.onednn.qlinear_prepack(whole, None)
    none = torch.zeros_like(scale, dtype=torch.int32)

    def forward(x: Tensor) -> Tensor:
        q, least, reach = rounded(x, parent)
        product = torch.ops.onednn.qlinear_pointwise(
            q, 1 / _LEVELS, 0, weight, scale, none, None, 1.0, 0, torch.float32, "none", [], ""
        )
        found = torch.addcmul(torch.addr(bias, least[:, 0], sums), product, reach)
        return found.view(*x.shape[:-1], -1)

    return forward
