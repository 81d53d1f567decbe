"""Root mean square norms as one operation each, where a model spells them out.

transformers writes such a norm (Zhang and Sennrich, arXiv 1910.07467, equation 4) as eight operations in
float32, which on a GPU take longer than the attention beside them and keep several times their input for the
backward pass. torch has one that does the same. Whether a module is such a norm is tried out, not looked up.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from influcoder_ray.gradients.tryout import alike, probe

_EPSILONS = ("variance_epsilon", "eps")


def norms_of(model: nn.Module) -> list[nn.Module]:
    """The modules of a model, numbers and all, that `fused_norms` can take over."""
    return [module for module in model.modules() if _is_norm(module)]


@contextmanager
def fused_norms(norms: Sequence[nn.Module]) -> Iterator[None]:
    """While it lasts, these norms are computed by torch's own."""
    for norm in norms:
        norm.forward = partial(_norm, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return functional.rms_norm(x, weight.shape, weight, _epsilon(module))


def _epsilon(module: nn.Module) -> float | None:
    found = (getattr(module, name, None) for name in _EPSILONS)
    return next((epsilon for epsilon in found if isinstance(epsilon, float)), None)


def _is_norm(module: nn.Module) -> bool:
    parameters = dict(module.named_parameters())
    weight = parameters.get("weight")
    # One whose forward somebody else has taken over is left to them.
    if len(parameters) != 1 or weight is None or weight.dim() != 1 or "forward" in vars(module):
        return False
    # A gated norm takes the gate too.
    if len(inspect.signature(module.forward).parameters) != 1:
        return False
    if any(module.children()) or _epsilon(module) is None or "norm" not in type(module).__name__.lower():
        return False
    rows = probe(weight)
    with torch.no_grad():
        try:
            expected = module(rows)
        except (RuntimeError, ValueError):
            # It takes something else than rows: heads, say.
            return False
        return alike(_norm(module, rows), expected)
