"""Packed linear layers: the same numbers, or nearly, and none of yesterday's weights."""

import copy

import pytest
import torch
from torch import Tensor, nn

from influcoder_ray.encoder.linears import fast_linears


class Block(nn.Module):
    """Two layers of one input, and one behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(48, 64)
        self.right = nn.Linear(48, 64, bias=False)
        self.out = nn.Linear(64, 40)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(nn.functional.gelu(self.left(x)) + self.right(x))
        return found


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block()


def computed(block: Block, x: Tensor, *, int8: bool) -> Tensor:
    with torch.inference_mode(), fast_linears(block, int8=int8):
        found: Tensor = block(x)
    return found


def test_float32_is_what_the_layers_themselves_give(block: Block) -> None:
    """Prevents a fast path that is another embedding."""
    x = torch.randn(2, 7, 48)
    torch.testing.assert_close(computed(block, x, int8=False), block(x), atol=1e-5, rtol=1e-5)


def test_int8_gives_nearly_the_same_whatever_the_range_of_a_token(block: Block) -> None:
    """Prevents one token's large numbers from rounding away those of all others."""
    scale = torch.tensor([1e-3, 1.0, 50.0])[:, None]
    x = torch.randn(3, 48) * scale + 0.3 * scale
    nn.init.zeros_(block.left.bias)
    nn.init.zeros_(block.out.bias)
    cosines = torch.cosine_similarity(computed(block, x, int8=True), block(x))
    assert cosines.min() > 0.999
    flat = torch.full((1, 48), 0.5)
    torch.testing.assert_close(computed(block, flat, int8=True), block(flat), atol=0.02, rtol=0.02)


def test_int8_of_a_token_does_not_depend_on_its_neighbours(block: Block) -> None:
    """Prevents vectors that change with the texts that happen to share a batch."""
    x = torch.randn(9, 48)
    loud = torch.cat([x, 100 * torch.randn(4, 48)])
    torch.testing.assert_close(
        computed(block, x, int8=True), computed(block, loud, int8=True)[:9], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("int8", [False, True])
def test_weights_are_packed_anew_each_time_and_layers_train_as_before(block: Block, int8: bool) -> None:
    """Prevents the vectors of an epoch from being computed with the weights of the one before."""
    x = torch.randn(5, 48)
    before = computed(block, x, int8=int8)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(1.5)
    fresh = copy.deepcopy(block)
    assert torch.equal(computed(block, x, int8=int8), computed(fresh, x, int8=int8))
    assert not torch.allclose(computed(block, x, int8=int8), before)
    block(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_a_fault_leaves_the_layers_as_they_were(block: Block) -> None:
    """Prevents a worker that goes on without gradients, or with old weights, after a failed unit."""
    x = torch.randn(5, 48)
    expected = block(x)
    with pytest.raises(RuntimeError, match="amid"), fast_linears(block, int8=True):
        raise RuntimeError("amid")
    assert torch.equal(block(x), expected)
