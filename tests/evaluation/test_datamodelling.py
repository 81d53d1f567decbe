"""The linear datamodelling score beside its definition, and what chance alone gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from influcoder_ray.evaluation.datamodelling import (
    attributed_outputs,
    datamodelling_rho,
    datamodelling_summary,
)


def _problem(
    queries: int, pool: int, subsets: int, noise: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (Q, P), subsets (M, P) and losses (M, Q) that follow the scores but for noise."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(queries, pool))
    chosen = np.zeros((subsets, pool), dtype=np.bool_)
    for row in chosen:
        row[generator.permutation(pool)[: pool // 2]] = True
    losses = 5 - chosen @ scores.T + noise * generator.normal(size=(subsets, queries))
    return scores, chosen, losses


@given(
    queries=st.integers(1, 5),
    pool=st.integers(2, 12),
    subsets=st.integers(3, 9),
    noise=st.floats(0.1, 30),
    seed=st.integers(0, 10**6),
)
def test_it_is_spearmans_correlation_of_summed_scores_and_outputs(
    queries: int, pool: int, subsets: int, noise: float, seed: int
) -> None:
    """Prevents a score of another formula: of losses with their sign, of means, or over queries."""
    scores, chosen, losses = _problem(queries, pool, subsets, noise, seed)
    found = datamodelling_rho(scores, chosen, losses)
    for query in range(queries):
        sums = [sum(scores[query, i] for i in range(pool) if chosen[m, i]) for m in range(subsets)]
        np.testing.assert_allclose(attributed_outputs(scores, chosen)[query], sums, atol=1e-9)
        # Equal subsets have equal sums: those of the function are compared, which round alike.
        sums = attributed_outputs(scores, chosen)[query]
        expected = spearmanr(sums, -losses[:, query]).statistic if len(set(sums)) > 1 else 0.0
        assert found[query] == pytest.approx(expected, abs=1e-12)


def test_scores_that_foretell_the_losses_are_told_from_scores_that_do_not() -> None:
    """Prevents a p-value or a spread that says the same of a perfect method and of none."""
    scores, chosen, losses = _problem(20, 40, 12, 0.0, 1)
    perfect = datamodelling_summary(scores, chosen, losses, resamples=300, seed=0)
    assert perfect["mean"] == pytest.approx(1.0)
    assert perfect["std"] == pytest.approx(0.0, abs=1e-9)
    assert perfect["p_value"] == pytest.approx(1 / 301)
    opposite = datamodelling_summary(-scores, chosen, losses, resamples=300, seed=0)
    assert opposite["mean"] == pytest.approx(-1.0)
    assert opposite["p_value"] == 1.0
    other = np.random.default_rng(5).normal(size=scores.shape)
    none = datamodelling_summary(other, chosen, losses, resamples=300, seed=0)
    assert abs(none["mean"]) < 4 * none["chance_std"] < 1


def test_chance_counts_queries_that_are_alike_as_few() -> None:
    """Prevents a certainty that comes from asking the same question a hundred times."""
    scores, chosen, losses = _problem(1, 40, 8, 3.0, 2)
    one = datamodelling_summary(scores, chosen, losses, resamples=500, seed=0)
    hundred = datamodelling_summary(
        np.repeat(scores, 100, axis=0), chosen, np.repeat(losses, 100, axis=1), resamples=500, seed=0
    )
    assert hundred["mean"] == pytest.approx(one["mean"])
    assert hundred["chance_std"] == pytest.approx(one["chance_std"])
    assert hundred["p_value"] == one["p_value"]


@pytest.mark.parametrize(
    ("scores", "subsets", "losses", "message"),
    [
        ((2, 5), (4, 6), (4, 2), "queries x pool and subsets x pool"),
        ((2, 5), (2, 5), (2, 2), "2 subsets have no rank correlation"),
        ((2, 5), (4, 5), (3, 2), "for 4 subsets; one row each is needed"),
        ((2, 5), (4, 5), (4, 3), "they must be equal"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    scores: tuple[int, int], subsets: tuple[int, int], losses: tuple[int, int], message: str
) -> None:
    """Prevents a figure out of a transposed matrix."""
    with pytest.raises(ValueError, match=message):
        datamodelling_rho(np.ones(scores), np.ones(subsets, dtype=np.bool_), np.ones(losses))
