"""The baselines that a trained encoder has to beat."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.evaluation.agreement import bootstrap_rows, point_estimates, summarise
from influcoder_ray.evaluation.baselines import (
    bm25_scores,
    random_scores,
    random_summary,
    resample_random,
    tfidf_scores,
)

# Few words, so that texts share them; some are none to the analyzer, or the same but for case and accents.
TEXTS = st.lists(st.sampled_from(["oven", "Oven", "bread", "river", "öven", "a", "?!"]), max_size=8).map(
    " ".join
)


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


def bm25(query: list[str], text: list[str], pool: list[list[str]]) -> float:
    """The formula of Robertson and Zaragoza with Lucene's idf, a word of the query at a time."""
    score = 0.0
    for word in query:
        holding = sum(word in other for other in pool)
        idf = math.log(1 + (len(pool) - holding + 0.5) / (holding + 0.5))
        mean_length = sum(map(len, pool)) / len(pool)
        times = text.count(word)
        if times:
            score += idf * times / (times + 1.2 * (1 - 0.75 + 0.75 * len(text) / mean_length))
    return score


@given(st.lists(TEXTS, max_size=3), st.lists(TEXTS, min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_bm25_is_the_formula_word_by_word(queries: list[str], pool: list[str]) -> None:
    """Prevents a rival that is weaker than it should be, and so an encoder that beats a straw man."""

    def words(text: str) -> list[str]:
        return re.findall(r"\w\w+", text.lower().replace("ö", "o"))

    split = [words(text) for text in pool]
    expected = [[bm25(words(query), text, split) for text in split] for query in queries]
    scores = bm25_scores(queries, pool)
    assert scores.shape == (len(queries), len(pool))
    np.testing.assert_allclose(scores, np.reshape(expected, scores.shape), rtol=1e-12, atol=1e-12)
    assert (scores >= 0).all()


def test_bm25_counts_a_word_that_every_text_holds_for_little_but_never_against() -> None:
    """Prevents the classical idf, which is negative for words of more than half of the texts."""
    scores = bm25_scores(["the whale"], ["the cat sat", "the dog ran", "the whale sang"])[0]
    assert scores.argmax() == 2
    assert scores[2] > 5 * scores[0] > 0


@pytest.mark.parametrize("pool", [["", "  "], ["?!", "a b c"], []])
def test_bm25_of_a_pool_without_words_is_zero(pool: list[str]) -> None:
    """Prevents a division by a mean length of nothing."""
    assert bm25_scores(["some words"], pool).tolist() == [[0.0] * len(pool)]


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


def test_chance_on_a_resample_is_that_of_its_draw_on_those_queries() -> None:
    """Prevents a lead over one lucky draw from passing for a lead over chance."""
    exact = np.random.default_rng(1).normal(size=(6, 15))
    rows = bootstrap_rows(6, 7, seed=2)
    found = resample_random(exact, recall_at=(3,), draws=3, rows=rows, seed=4)
    seeds = np.random.SeedSequence(4).generate_state(3, np.uint64)
    drawn = [random_scores(6, 15, int(seed)) for seed in seeds]
    for resample, queries in enumerate(rows):
        expected = point_estimates(drawn[resample % 3][queries], exact[queries], (3,))
        assert {k: v[resample] for k, v in found.draws.items()} == pytest.approx(expected)
    summary = random_summary(exact, recall_at=(3,), draws=3, seed=4)
    assert found.estimates == pytest.approx({name: figures["mean"] for name, figures in summary.items()})


def test_random_summary_of_one_draw_or_of_no_matrix_is_refused() -> None:
    """Prevents a deviation of NaN, and an unpacking error that names nothing."""
    with pytest.raises(ValueError, match="draws is 1"):
        random_summary(np.zeros((1, 2)), recall_at=(), draws=1, seed=0)
    with pytest.raises(ValueError, match=r"exact has shape \(2,\)"):
        random_summary(np.zeros(2), recall_at=(), draws=2, seed=0)
