"""Linear layers on a CPU while their weights stay as they are: these lie as oneDNN's kernels read them.

The sums are the same in another order. What is packed once for many batches would else be packed by every
product.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

# Rows of the input that weights are packed for; others are computed too.
_ROWS = 512
# A kernel that is not what it is taken for is off by far more than this share.
_TOLERANCE = 1e-3


@cache
def can_pack() -> bool:
    """Whether this build of torch has the kernels, on this machine: a small layer is tried."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 48)
    x = torch.randn(4, 64, generator=generator)
    with torch.inference_mode():
        layer.weight.copy_(torch.randn(48, 64, generator=generator))
        expected = layer(x)
        try:
            with packed_linears(nn.Sequential(layer)):
                found = layer(x)
        except (AttributeError, RuntimeError):
            return False
    return float((found - expected).norm()) <= _TOLERANCE * float(expected.norm())


@contextmanager
def packed_linears(model: nn.Module) -> Iterator[None]:
    """While it lasts, linear layers of the model compute with packed weights, and carry no gradients.

    A fault within leaves them as they were.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    with torch.inference_mode():
        forwards = [_packed(layer) for layer in layers]
    try:
        for layer, forward in zip(layers, forwards, strict=True):
            # An instance's own forward comes before its class's.
            layer.__dict__["forward"] = forward
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _packed(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)

    def forward(x: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")
        return found

    return forward
