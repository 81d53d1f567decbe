"""Losses of fine-tunes compared pair by pair, beside the textbook's formulas."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from influcoder_ray.evaluation.retrained import mean_loss, paired_difference

RANDOM = np.random.default_rng(4)
# What a seed and a query do to both sides is far larger than the difference.
COMMON = RANDOM.normal(size=(4, 1)) + RANDOM.normal(size=(1, 30))
RIVAL = 2 + COMMON + 0.01 * RANDOM.normal(size=(4, 30))
BETTER = RIVAL - 0.05 + 0.02 * RANDOM.normal(size=(4, 30))


def test_a_loss_has_its_mean_and_its_spread_over_seeds() -> None:
    """Prevents a spread over queries, or over all numbers, that is called one over seeds."""
    found = mean_loss(BETTER)
    assert found["mean"] == pytest.approx(BETTER.mean())
    assert found["each"] == pytest.approx(BETTER.mean(axis=1).tolist())
    assert found["std"] == pytest.approx(np.std(BETTER.mean(axis=1), ddof=1))
    assert mean_loss(BETTER[:1])["std"] is None


def test_the_interval_over_seeds_is_students_of_pairs() -> None:
    """Prevents the spread of two separate figures, in which a small difference drowns."""
    found = paired_difference(BETTER, RIVAL, resamples=500, seed=0)
    expected = ttest_rel(BETTER.mean(axis=1), RIVAL.mean(axis=1)).confidence_interval(0.95)
    assert found["interval_over_seeds"] == pytest.approx([expected.low, expected.high])
    assert found["mean"] == pytest.approx((BETTER - RIVAL).mean())
    assert found["seeds_lower"] == 4
    assert found["queries_lower"] == pytest.approx(((BETTER - RIVAL).mean(axis=0) < 0).mean())
    assert np.std(BETTER.mean(axis=1)) > 10 * found["std"]


def test_the_interval_over_queries_is_about_that_of_the_normal_distribution() -> None:
    """Prevents a bootstrap of something else than the queries' mean differences."""
    found = paired_difference(BETTER, RIVAL, resamples=4000, seed=0)
    each = (BETTER - RIVAL).mean(axis=0)
    half = 1.96 * each.std(ddof=1) / np.sqrt(len(each))
    assert found["interval_over_queries"] == pytest.approx([each.mean() - half, each.mean() + half], abs=8e-4)


def test_sides_exchanged_change_the_sign_alone() -> None:
    """Prevents a sign that means better in one table and worse in the next."""
    one = paired_difference(BETTER, RIVAL, resamples=200, seed=0)
    other = paired_difference(RIVAL, BETTER, resamples=200, seed=0)
    assert other["mean"] == pytest.approx(-one["mean"])
    assert other["interval_over_seeds"] == pytest.approx([-x for x in reversed(one["interval_over_seeds"])])
    assert other["interval_over_queries"] == pytest.approx(
        [-x for x in reversed(one["interval_over_queries"])]
    )
    assert other["seeds_lower"] == 0


def test_one_seed_has_no_spread_over_seeds_and_one_over_queries() -> None:
    """Prevents a NaN in the file, and a certainty that one seed cannot give."""
    found = paired_difference(BETTER[:1], RIVAL[:1], resamples=200, seed=0)
    assert found["std"] is None
    assert found["interval_over_seeds"] is None
    assert found["interval_over_queries"][0] < found["mean"] < found["interval_over_queries"][1]
    with pytest.raises(ValueError, match="make no pairs"):
        paired_difference(BETTER, RIVAL[:2], resamples=200, seed=0)
