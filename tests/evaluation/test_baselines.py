"""The baselines that a trained encoder has to beat."""

import numpy as np
import pytest

from influcoder_ray.evaluation.agreement import summarise
from influcoder_ray.evaluation.baselines import random_scores, random_summary, tfidf_scores


def test_tfidf_prefers_the_text_that_shares_rare_words() -> None:
    """Prevents scores laid out pool x queries, or without the weight of rare words."""
    pool = ["the cat sat", "the dog ran", "the whale sang", "the bird flew"]
    scores = tfidf_scores(["the whale", "a dog and the dog"], pool)
    assert scores.shape == (2, 4)
    assert scores.argmax(axis=1).tolist() == [2, 1]
    assert scores[0, 2] > scores[0, 0] > 0


def test_tfidf_of_a_text_with_itself_is_one_whatever_its_accents_and_case() -> None:
    """Prevents unnormalised vectors, and accents that make two words of one."""
    scores = tfidf_scores(["Café Zürich"], ["cafe zurich", "nothing else"])
    assert scores == pytest.approx(np.array([[1.0, 0.0]]))


@pytest.mark.parametrize("pool", [["", "  "], ["?!", "a b c"], []])
def test_tfidf_of_a_pool_without_words_is_zero(pool: list[str]) -> None:
    """Prevents an evaluation from failing on a pool of punctuation."""
    scores = tfidf_scores(["some words"], pool)
    assert scores.shape == (1, len(pool))
    assert not scores.any()


def test_tfidf_without_queries_or_with_an_empty_one_is_no_error() -> None:
    """Prevents a failure, or NaN from dividing by an empty query's length."""
    assert tfidf_scores([], ["some words"]).shape == (0, 1)
    assert tfidf_scores([""], ["some words"]).tolist() == [[0.0]]


def test_random_scores_repeat_for_a_seed_and_differ_between_seeds() -> None:
    """Prevents a baseline that nobody can reproduce."""
    assert (random_scores(3, 5, 7) == random_scores(3, 5, 7)).all()
    assert (random_scores(3, 5, 7) != random_scores(3, 5, 8)).any()


def test_random_summary_has_the_form_of_a_method_and_the_figures_of_chance() -> None:
    """Prevents draws that repeat one another, and a chance level other than k / P."""
    exact = np.random.default_rng(0).normal(size=(20, 50))
    summary = random_summary(exact, recall_at=(10,), draws=200, seed=0)
    assert set(summary) == set(summarise(exact, exact, recall_at=(10,), resamples=2, seed=0))
    assert summary["recall_at_10"]["mean"] == pytest.approx(10 / 50, abs=0.01)
    assert summary["per_query_rho"]["mean"] == pytest.approx(0, abs=0.01)
    # Under independence the deviation of one rho is 1 / sqrt(P - 1).
    assert summary["aggregated_rho"]["std"] == pytest.approx(1 / 7, rel=0.15)
    assert summary["per_query_rho"]["std"] == pytest.approx(1 / 7 / np.sqrt(20), rel=0.15)
    assert summary == random_summary(exact, recall_at=(10,), draws=200, seed=0)
    assert summary != random_summary(exact, recall_at=(10,), draws=200, seed=1)


def test_random_summary_of_one_draw_or_of_no_matrix_is_refused() -> None:
    """Prevents a deviation of NaN, and an unpacking error that names nothing."""
    with pytest.raises(ValueError, match="draws is 1"):
        random_summary(np.zeros((1, 2)), recall_at=(), draws=1, seed=0)
    with pytest.raises(ValueError, match=r"exact has shape \(2,\)"):
        random_summary(np.zeros(2), recall_at=(), draws=2, seed=0)
