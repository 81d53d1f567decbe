"""Rank agreement and recall against independent definitions of both."""

import warnings

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import spearmanr

from influcoder_ray.evaluation.agreement import (
    aggregated_rho,
    per_query_rho,
    point_estimates,
    recall_at_k,
    summarise,
)

Matrix = npt.NDArray[np.float64]
quick = settings(max_examples=50, deadline=None)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Matrix, Matrix]:
    """Two (Q, P) matrices of few distinct values, so that ties are the rule and constant rows occur."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(2, 12)))
    values = st.integers(-3, 3).map(lambda step: step / 7)
    return draw(hnp.arrays(np.float64, shape, elements=values)), draw(
        hnp.arrays(np.float64, shape, elements=values)
    )


def scipy_rho(left: Matrix, right: Matrix) -> float:
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return 0.0
    return float(spearmanr(left, right).statistic)


@given(pairs())
@quick
def test_per_query_rho_is_scipys_row_by_row_with_ties_and_zero_for_constant_rows(
    pair: tuple[Matrix, Matrix],
) -> None:
    """Prevents a vectorised rank correlation that treats ties or rows unlike the reference, or gives NaN."""
    rho = per_query_rho(*pair)
    expected = [scipy_rho(left, right) for left, right in zip(*pair, strict=True)]
    np.testing.assert_allclose(rho, expected, rtol=0, atol=1e-12)


@given(pairs())
@quick
def test_aggregated_rho_is_scipys_on_the_mean_rows(pair: tuple[Matrix, Matrix]) -> None:
    """Prevents averaging correlations where the correlation of averages is meant."""
    means = [matrix.mean(axis=0) for matrix in pair]
    assert aggregated_rho(*pair) == pytest.approx(scipy_rho(*means), abs=1e-12)


def test_duplicate_pool_examples_keep_tied_means() -> None:
    """Prevents rounding in the mean over queries from ordering columns that are equal."""
    column = np.random.default_rng(0).normal(size=(37, 1))
    predicted = np.repeat(column, 501, axis=1)
    exact = np.random.default_rng(1).normal(size=predicted.shape)
    assert aggregated_rho(predicted, exact) == 0.0


def test_rho_sees_order_alone_and_its_sign() -> None:
    """Prevents a correlation of values (Pearson) from passing as one of ranks."""
    exact = np.random.default_rng(2).normal(size=(3, 20))
    assert per_query_rho(np.exp(5 * exact), exact) == pytest.approx([1, 1, 1])
    assert per_query_rho(-exact, exact) == pytest.approx([-1, -1, -1])


@given(pairs(), st.integers(1, 15))
@quick
def test_recall_is_the_shared_part_of_two_stable_sorts(pair: tuple[Matrix, Matrix], k: int) -> None:
    """Prevents a recall that depends on how a sort happens to leave ties."""
    recall = recall_at_k(*pair, k)
    for row, (predicted, exact) in enumerate(zip(*pair, strict=True)):
        tops = [
            set(sorted(range(len(scores)), key=lambda place, of=scores: (-of[place], place))[:k])  # type: ignore[misc]
            for scores in (predicted, exact)
        ]
        assert recall[row] == pytest.approx(len(tops[0] & tops[1]) / min(k, len(exact)))


@given(pairs(), st.integers(1, 15))
@quick
def test_recall_is_one_for_the_truth_itself_and_for_a_k_of_the_whole_pool(
    pair: tuple[Matrix, Matrix], k: int
) -> None:
    """Prevents a denominator of k where the pool holds fewer than k."""
    assert (recall_at_k(pair[1], pair[1], k) == 1).all()
    assert (recall_at_k(*pair, pair[0].shape[1] + k) == 1).all()


def test_summary_holds_point_estimates_and_repeats_for_a_seed() -> None:
    """Prevents a bootstrap mean in the place of the estimate, and a figure that cannot be reproduced."""
    generator = np.random.default_rng(3)
    exact = generator.normal(size=(12, 30))
    predicted = exact + generator.normal(size=exact.shape)
    first = summarise(predicted, exact, recall_at=(5, 10), resamples=50, seed=1)
    assert first == summarise(predicted, exact, recall_at=(5, 10), resamples=50, seed=1)
    other = summarise(predicted, exact, recall_at=(5, 10), resamples=50, seed=2)
    means = point_estimates(predicted, exact, (5, 10))
    assert set(first) == {"aggregated_rho", "per_query_rho", "recall_at_5", "recall_at_10"}
    for name, figures in first.items():
        assert figures["mean"] == other[name]["mean"] == means[name]
        assert figures["std"] > 0
        assert figures["std"] != other[name]["std"]


def test_bootstrap_deviation_of_a_mean_is_its_standard_error() -> None:
    """Prevents resampling the wrong axis: over queries, the deviation of their mean rho is known."""
    generator = np.random.default_rng(4)
    exact = generator.normal(size=(40, 25))
    predicted = exact * generator.uniform(-1, 1, size=(40, 1)) + generator.normal(size=exact.shape)
    std = summarise(predicted, exact, recall_at=(), resamples=2000, seed=0)["per_query_rho"]["std"]
    assert std == pytest.approx(per_query_rho(predicted, exact).std() / np.sqrt(40), rel=0.1)


@pytest.mark.parametrize(
    ("predicted", "exact", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), r"\(2, 3\) and exact \(3, 2\)"),
        (np.zeros(3), np.zeros(3), r"predicted has shape \(3,\)"),
        (np.zeros((0, 3)), np.zeros((0, 3)), r"predicted has shape \(0, 3\)"),
        (np.zeros((1, 2)), np.array([[0, np.nan]]), "exact holds 1 values.*query 0, pool 1"),
        (np.array([[np.inf, 0]]), np.zeros((1, 2)), "predicted holds 1 values.*query 0, pool 0"),
    ],
)
def test_matrices_that_cannot_be_compared_are_refused(predicted: Matrix, exact: Matrix, message: str) -> None:
    """Prevents NaN from ranking as a number, and silent broadcasting."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for measure in (per_query_rho, aggregated_rho, lambda left, right: recall_at_k(left, right, 1)):
            with pytest.raises(ValueError, match=message):
                measure(predicted, exact)


def test_counts_too_small_to_mean_anything_are_refused() -> None:
    """Prevents a recall at 0 and a deviation of one draw."""
    with pytest.raises(ValueError, match="k is 0"):
        recall_at_k(np.zeros((1, 2)), np.zeros((1, 2)), 0)
    with pytest.raises(ValueError, match="resamples is 1"):
        summarise(np.zeros((1, 2)), np.zeros((1, 2)), recall_at=(), resamples=1, seed=0)
