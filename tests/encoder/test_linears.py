"""Packed linear layers: the same numbers, and none of yesterday's weights."""

import copy

import pytest
import torch
from torch import Tensor, nn

from influcoder_ray.encoder.linears import can_pack, packed_linears


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


def computed(block: Block, x: Tensor) -> Tensor:
    with torch.inference_mode(), packed_linears(block):
        found: Tensor = block(x)
    return found


def test_packed_layers_give_what_the_layers_themselves_give(block: Block) -> None:
    """Prevents a fast path that is another embedding."""
    x = torch.randn(2, 7, 48)
    torch.testing.assert_close(computed(block, x), block(x), atol=1e-5, rtol=1e-5)
    assert can_pack() == torch.backends.mkldnn.is_available()


def test_weights_are_packed_anew_each_time_and_layers_train_as_before(block: Block) -> None:
    """Prevents the vectors of an epoch from being computed with the weights of the one before."""
    x = torch.randn(5, 48)
    before = computed(block, x)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(1.5)
    fresh = copy.deepcopy(block)
    assert torch.equal(computed(block, x), computed(fresh, x))
    assert not torch.allclose(computed(block, x), before)
    block(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_a_fault_leaves_the_layers_as_they_were(block: Block) -> None:
    """Prevents a worker that goes on without gradients, or with old weights, after a failed unit."""
    x = torch.randn(5, 48)
    expected = block(x)
    with pytest.raises(RuntimeError, match="amid"), packed_linears(block):
        raise RuntimeError("amid")
    assert torch.equal(block(x), expected)
