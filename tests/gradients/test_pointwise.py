"""What a model spells out is taken over only where it computes the same, and left as it was afterwards."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import causal_config, causal_lm
from torch import Tensor
from torch.nn import functional

from influcoder_ray.gradients import pointwise
from influcoder_ray.gradients.fused import pointwise_kernels_on
from influcoder_ray.gradients.pointwise import pointwise_of

CPU = torch.device("cpu")
# Two layers each; whether their rotary embedding turns halves, and how many gates are silu's.
FAMILIES = {
    "llama": (True, 2),
    "qwen3": (True, 2),
    "mistral": (True, 2),
    "olmo2": (True, 2),
    "gemma2": (True, 0),
    "gpt_neox": (True, 0),
    "gpt2": (False, 0),
}


def halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


class Counted:
    """Plain operations in the place of kernels, which count how often they were asked."""

    def __init__(self) -> None:
        self.turned = self.gated = 0
        self.Rotary = SimpleNamespace(apply=self._turn)
        self.GatedSilu = SimpleNamespace(apply=self._gate)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        self.turned += 1
        return x * cos[:, None] + halves(x) * sin[:, None]

    def _gate(self, gate: Tensor, up: Tensor) -> Tensor:
        self.gated += 1
        return functional.silu(gate) * up


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Counted:
    found = Counted()
    monkeypatch.setattr(pointwise, "pointwise_kernels_on", lambda device: found)
    return found


def home_of(model: torch.nn.Module) -> ModuleType:
    return sys.modules[type(model).__module__]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_taken_over_as_far_as_it_computes_the_same(family: str, kernels: Counted) -> None:
    """Prevents another activation or another turning from being replaced, and a model that stays changed."""
    turns, gates = FAMILIES[family]
    model = causal_lm(causal_config(family))
    before_turn = getattr(home_of(model), "apply_rotary_pos_emb", None)
    found = pointwise_of(model, CPU)
    assert found is not None
    assert (bool(found.rotary), len(found.gated)) == (turns, gates)
    kernels.turned = kernels.gated = 0
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        before = model(ids).logits
        assert (kernels.turned, kernels.gated) == (0, 0)
        with found.fused():
            during = model(ids).logits
        # GPT-NeoX turns a part of each head, and does so itself.
        assert kernels.turned == (4 if turns and family != "gpt_neox" else 0)
        assert kernels.gated == gates
        after = model(ids).logits
    torch.testing.assert_close(during, before, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, before)
    assert getattr(home_of(model), "apply_rotary_pos_emb", None) is before_turn
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_rotary_embedding_of_another_kind_is_left_to_the_model(
    kernels: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents neighbours that are turned with each other from being taken for halves."""
    model = causal_lm(causal_config("llama"))

    def neighbours(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        def turn(x: Tensor) -> Tensor:
            swapped = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
            return x * cos[:, None] + swapped * sin[:, None]

        return turn(q), turn(k)

    monkeypatch.setattr(home_of(model), "apply_rotary_pos_emb", neighbours)
    found = pointwise_of(model, CPU)
    assert found is not None
    assert not found.rotary


def test_without_kernels_nothing_is_taken_over() -> None:
    """Prevents a CPU from being asked for what it cannot do."""
    assert pointwise_of(causal_lm(causal_config("llama")), CPU) is None


on_a_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or pointwise_kernels_on(torch.device("cuda")) is None,
    reason="no GPU here that Triton compiles for",
)


def with_gradients(out: Tensor, sides: tuple[Tensor, ...], gradient: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad(out, sides, gradient)]


@on_a_gpu
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("shape", [(1, 5, 7, 8), (2, 40, 3, 12), (3, 2, 130, 128)])
@pytest.mark.parametrize("shared", [True, False])
def test_kernels_turn_as_plain_operations_do(
    shape: tuple[int, int, int, int], shared: bool, dtype: torch.dtype, most: float
) -> None:
    """Prevents a wrong stride, angles of another row, or a gradient that is turned the wrong way."""
    kernels: Any = pointwise_kernels_on(torch.device("cuda"))
    rows, heads, tokens, width = shape
    torch.manual_seed(0)
    x = torch.randn(rows, tokens, heads, width, device="cuda", dtype=dtype, requires_grad=True)
    cos, sin = torch.randn(2, 1 if shared else rows, tokens, width, device="cuda", dtype=dtype)
    gradient = torch.randn(shape, device="cuda", dtype=dtype)
    found = with_gradients(kernels.Rotary.apply(x.transpose(1, 2), cos, sin), (x,), gradient)
    whole = x.double().transpose(1, 2) * cos.double()[:, None] + (
        halves(x.double().transpose(1, 2)) * sin.double()[:, None]
    )
    expected = with_gradients(whole, (x,), gradient.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert float(((ours - theirs).norm() / theirs.norm()).detach()) < most


@on_a_gpu
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1501), (2, 64, 2048)])
def test_kernels_gate_as_plain_operations_do(shape: tuple[int, ...], dtype: torch.dtype, most: float) -> None:
    """Prevents a wrong derivative, and numbers behind the last whole block from being left out."""
    kernels: Any = pointwise_kernels_on(torch.device("cuda"))
    torch.manual_seed(0)
    gate, up = (torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2))
    gradient = torch.randn(shape, device="cuda", dtype=dtype)
    found = with_gradients(kernels.GatedSilu.apply(gate, up), (gate, up), gradient)
    whole = functional.silu(gate.double()) * up.double()
    expected = with_gradients(whole, (gate, up), gradient.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert float(((ours - theirs).norm() / theirs.norm()).detach()) < most
