"""The distillation losses equal their formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax
from scipy.stats import pearsonr

from influcoder_ray.encoder.losses import distillation_loss, listwise_loss, pearson_loss

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=7)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and exact influences of a block, neither of them constant."""
    shape = draw(SHAPES)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return generator.uniform(-1, 1, shape), generator.uniform(-1, 1, shape)


def pearson(predicted: np.ndarray, target: np.ndarray) -> float:
    return 1 - float(pearsonr(predicted.ravel(), target.ravel()).statistic)


def kullback_leibler(predicted: np.ndarray, target: np.ndarray, temperature: float) -> float:
    p, t = log_softmax(predicted / temperature, axis=1), log_softmax(target / temperature, axis=1)
    return float((np.exp(t) * (t - p)).sum(1).mean())


@given(blocks())
@settings(max_examples=50, deadline=None)
def test_pearson_loss_is_one_minus_the_correlation_over_all_pairs(
    block: tuple[np.ndarray, np.ndarray],
) -> None:
    """Prevents a correlation by rows, which would leave the level of each query free."""
    found = pearson_loss(*map(torch.from_numpy, block))
    assert float(found) == pytest.approx(pearson(*block), abs=1e-9)


@given(blocks(), st.floats(0.01, 100), st.floats(-5, 5))
@settings(max_examples=50, deadline=None)
def test_pearson_loss_ignores_scale_and_shift(
    block: tuple[np.ndarray, np.ndarray], scale: float, shift: float
) -> None:
    """Prevents the student from being asked for the teacher's scale, which cosines cannot give."""
    predicted, target = map(torch.from_numpy, block)
    found = pearson_loss(predicted, scale * target + shift)
    assert float(found) == pytest.approx(float(pearson_loss(predicted, target)), abs=1e-6)


@given(blocks(), st.floats(0.02, 2))
@settings(max_examples=50, deadline=None)
def test_listwise_loss_is_the_mean_divergence_of_the_rows(
    block: tuple[np.ndarray, np.ndarray], temperature: float
) -> None:
    """Prevents the divergence from being taken the wrong way round, or averaged over pairs."""
    found = listwise_loss(torch.from_numpy(block[0]), torch.from_numpy(block[1]), temperature)
    assert float(found) == pytest.approx(kullback_leibler(*block, temperature), rel=1e-6, abs=1e-9)


@given(blocks(), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
@settings(max_examples=50, deadline=None)
def test_the_loss_is_the_weighted_sum_of_both(block: tuple[np.ndarray, np.ndarray], share: float) -> None:
    """Prevents a share that weighs one loss and forgets to take it from the other."""
    found = distillation_loss(*map(torch.from_numpy, block), listwise_share=share, temperature=0.05)
    expected = (1 - share) * pearson(*block) + share * kullback_leibler(*block, 0.05)
    assert float(found) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_constant_prediction_gives_a_finite_loss_and_finite_gradients() -> None:
    """Prevents a collapsed encoder, or a block of equal influences, from spreading NaN."""
    varied = torch.rand(3, 4)
    for predicted, target in ((torch.full((3, 4), 0.5), varied), (varied, torch.full((3, 4), 0.5))):
        predicted = predicted.clone().requires_grad_()
        loss = distillation_loss(predicted, target, listwise_share=0.5, temperature=0.05)
        loss.backward()
        assert torch.isfinite(loss)
        assert predicted.grad is not None
        assert torch.isfinite(predicted.grad).all()
