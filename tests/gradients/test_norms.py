"""Norms as one operation: only those that are root mean square norms, and what they were afterwards."""

from collections import Counter

import pytest
import torch
from tiny import CAUSAL_CONFIGS, causal_config, causal_lm

from influcoder_ray.gradients.norms import fused_norms, norms_of

# Two in each of a model's layers and one at its end; four where the layers' results are normed too.
FAMILIES = {"llama": True, "qwen3": True, "mistral": True, "olmo2": True, "gemma2": False, "gpt2": False}


@pytest.mark.parametrize(("family", "has_them"), FAMILIES.items())
def test_root_mean_square_norms_are_found_by_what_they_compute(family: str, has_them: bool) -> None:
    """Prevents a norm with a mean, a bias, or one added to its weight from being replaced by another."""
    assert family in CAUSAL_CONFIGS
    model = causal_lm(causal_config(family))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    found = Counter(type(module).__name__ for module in norms_of(model))
    assert bool(found) is has_them
    if has_them:
        assert set(found) == {type(m).__name__ for m in model.modules() if "RMSNorm" in type(m).__name__}


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2"])
def test_a_model_with_fused_norms_computes_what_it_did(family: str) -> None:
    """Prevents an epsilon or a weight from getting lost, and a model that stays changed."""
    model = causal_lm(causal_config(family))
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        before = model(ids).logits
        with fused_norms(norms_of(model)):
            during = model(ids).logits
        after = model(ids).logits
    torch.testing.assert_close(during, before, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_forward_that_somebody_took_over_is_left_alone() -> None:
    """Prevents hooks of other libraries on a norm from being dropped."""
    model = causal_lm(causal_config("llama"))
    every = norms_of(model)
    every[0].forward = every[0].forward
    assert norms_of(model) == every[1:]


class Gated(torch.nn.Module):
    """A norm that takes a gate beside its rows, as those of state space layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(8) + 0.5)
        self.eps = 1e-6

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        normed = torch.nn.functional.rms_norm(x, (8,), self.weight, self.eps)
        return normed if gate is None else normed * gate


class OfHeads(Gated):
    """A norm that takes heads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        rows, heads, width = x.shape
        return super().forward(x.reshape(rows, heads * width))


@pytest.mark.parametrize("kind", [Gated, OfHeads])
def test_norms_that_take_something_else_than_rows_are_left_alone(kind: type[torch.nn.Module]) -> None:
    """Prevents a traceback on a GPU from models that mix attention with state space layers."""
    names = {"Gated": "RMSNormGated", "OfHeads": "MultiHeadRMSNorm"}
    norm = type(names[kind.__name__], (kind,), {})()
    assert norms_of(torch.nn.Sequential(norm)) == []
