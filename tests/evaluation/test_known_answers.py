"""Measures of rankings with known answers, against brute force over all orders and against scikit-learn."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from influcoder_ray.evaluation.agreement import Resampled
from influcoder_ray.evaluation.comparison import lead
from influcoder_ray.evaluation.known_answers import (
    average_precision,
    interval,
    mean_over_seeds,
    r_precision,
    recall_at,
    reciprocal_rank,
    reference_scores,
    rerank,
    resample_pool,
    resample_queries,
)

# Few different scores, so that most rankings have ties; at least one row is relevant.
RANKINGS = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6).filter(
    lambda rows: any(relevant for _, relevant in rows)
)


def orders(scores: list[int]) -> list[tuple[int, ...]]:
    """Every order of positions in which scores never rise."""
    every = permutations(range(len(scores)))
    return [o for o in every if all(scores[a] >= scores[b] for a, b in pairwise(o))]


@given(RANKINGS, st.integers(1, 8))
@settings(max_examples=150, deadline=None)
def test_rank_measures_are_means_over_every_order_of_equal_scores(
    rows: list[tuple[int, bool]], k: int
) -> None:
    """Prevents a method with ties from gaining or losing by where a file holds its rows."""
    scores, relevant = [score for score, _ in rows], [truth for _, truth in rows]
    size = sum(relevant)
    recalls, precisions, ranks = [], [], []
    for order in orders(scores):
        found = [relevant[row] for row in order]
        recalls.append(sum(found[:k]) / min(k, len(rows), size))
        precisions.append(sum(found[:size]) / size)
        ranks.append(1 / (found.index(True) + 1))
    pair = [scores], [relevant]
    assert recall_at(*pair, k)[0] == pytest.approx(np.mean(recalls))
    assert r_precision(*pair)[0] == pytest.approx(np.mean(precisions))
    assert reciprocal_rank(*pair)[0] == pytest.approx(np.mean(ranks))


@given(RANKINGS, st.data())
@settings(max_examples=100, deadline=None)
def test_average_precision_is_scikit_learns_with_ties_and_weights(
    rows: list[tuple[int, bool]], data: st.DataObject
) -> None:
    """Prevents an AUPRC that cannot be compared with what others report."""
    scores, positive = [score for score, _ in rows], [truth for _, truth in rows]
    weights = data.draw(st.lists(st.floats(0.1, 5), min_size=len(rows), max_size=len(rows)), label="weights")
    assert average_precision(scores, positive) == pytest.approx(average_precision_score(positive, scores))
    assert average_precision(scores, positive, weights) == pytest.approx(
        average_precision_score(positive, scores, sample_weight=weights)
    )


def test_thinned_out_rows_that_stand_for_all_give_the_average_precision_of_all() -> None:
    """Prevents a cheaper test on fewer negative rows from flattering every method."""
    generator = np.random.default_rng(0)
    positive = np.arange(4000) < 200
    scores = generator.normal(size=4000) + positive
    kept = positive | (generator.random(4000) < 0.25)
    weights = np.where(positive, 1.0, (~positive).sum() / (kept & ~positive).sum())
    whole = average_precision(scores, positive)
    assert average_precision(scores[kept], positive[kept], weights[kept]) == pytest.approx(whole, abs=0.03)
    assert average_precision(scores[kept], positive[kept]) > whole + 0.1


def test_each_query_is_measured_on_its_own_row() -> None:
    """Prevents figures of one query from standing for another's, or scores laid out pool x queries."""
    scores = [[3.0, 2, 1, 0], [0, 1, 2, 3]]
    relevant = [[True, True, False, False], [True, False, False, True]]
    assert r_precision(scores, relevant).tolist() == [1.0, 0.5]
    assert reciprocal_rank(scores, relevant).tolist() == [1.0, 1.0]
    assert recall_at(scores, relevant, 1).tolist() == [1.0, 1.0]
    assert recall_at(scores, [[False, False, True, True]] * 2, 2).tolist() == [0.0, 1.0]


def test_a_resample_of_queries_is_their_mean_and_of_a_group_that_of_its_queries() -> None:
    """Prevents an interval around another figure than the one that is printed."""
    values = np.array([0.0, 1.0, 1.0, 0.5])
    found = resample_queries({"m": values}, resamples=400, seed=1, groups=["a", "a", "b", "b"])
    assert found.estimates == pytest.approx({"m": 0.625, "m, a": 0.5, "m, b": 0.75})
    assert set(np.unique(found.draws["m, a"])) == {0.0, 0.5, 1.0}
    # The deviation of a mean of n draws with replacement is that of the values over the root of n.
    assert found.draws["m"].std() == pytest.approx(values.std() / 2, rel=0.15)
    figures = interval(found)["m"]
    assert figures["low"] < figures["mean"] < figures["high"]


def test_methods_on_the_same_queries_are_resampled_alike() -> None:
    """Prevents the difference of two methods from carrying the noise of both."""
    values = np.random.default_rng(2).random(30)
    better, worse = (resample_queries({"m": v}, resamples=50, seed=3) for v in (values + 0.1, values))
    ahead = lead(better, worse)["m"]
    assert ahead["mean"] == pytest.approx(0.1)
    assert ahead["std"] == pytest.approx(0, abs=1e-12)


def test_a_groups_average_precision_leaves_the_other_groups_positives_out() -> None:
    """Prevents an easy kind of positive row from hiding that the hard kind is not found."""
    scores = np.array([9.0, 8, 7, 6, 5, 4, 3, 2])
    positive = np.array([1, 1, 0, 0, 1, 0, 1, 0], bool)
    groups = ["easy", "easy", "x", "hard", "hard", "easy", "hard", "x"]
    found = resample_pool(scores, positive, resamples=20, seed=0, groups=groups)
    assert found.estimates["average_precision"] == pytest.approx(average_precision_score(positive, scores))
    for name in ("easy", "hard"):
        there = ~positive | (np.array(groups) == name)
        expected = average_precision_score(positive[there], scores[there])
        assert found.estimates[f"average_precision, {name}"] == pytest.approx(expected)
    assert set(found.estimates) == {
        "average_precision",
        "average_precision, easy",
        "average_precision, hard",
    }


def test_resamples_of_the_pool_hold_as_many_rows_of_each_kind() -> None:
    """Prevents resamples without a positive row, and spread that comes from their number alone."""
    perfect = resample_pool([3, 2, 1, 0], [1, 0, 0, 0], resamples=30, seed=0)
    assert set(perfect.draws["average_precision"]) == {1.0}
    # All scores alike: the precision is the share of positive rows, and that never changes.
    flat = resample_pool([1, 1, 1, 1], [1, 1, 0, 0], resamples=30, seed=0, groups=["a", "b", "a", "b"])
    assert set(flat.draws["average_precision"]) == {0.5}
    assert flat.draws["average_precision, a"] == pytest.approx(np.full(30, 1 / 3))


def test_the_mean_over_seeds_keeps_resamples_paired() -> None:
    """Prevents seeds from being averaged over sorted or shuffled resamples."""
    seeds = [Resampled({"m": e}, {"m": np.array(d)}) for e, d in ((0.2, [0.0, 0.4]), (0.4, [0.2, 0.8]))]
    mean = mean_over_seeds(seeds)
    assert mean.estimates == pytest.approx({"m": 0.3})
    assert mean.draws["m"].tolist() == pytest.approx([0.1, 0.6])


def test_negative_references_take_from_the_rows_that_are_like_them() -> None:
    """Prevents a refusal that resembles the unsafe references from being taken out with them."""
    positives, negatives = [[0.9, 0.8, 0.0], [0.7, 0.8, 0.2]], [[0.1, 0.9, 0.0]]
    assert reference_scores(positives) == pytest.approx([0.8, 0.8, 0.1])
    assert reference_scores(positives, negatives, negative_weight=0.5) == pytest.approx([0.75, 0.35, 0.1])
    assert reference_scores(positives, negatives, negative_weight=0) == pytest.approx([0.8, 0.8, 0.1])


@given(
    st.integers(1, 4),
    st.integers(2, 7),
    st.integers(0, 8),
    st.integers(0, 1000),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_re_ranking_puts_candidates_first_in_exact_order(
    queries: int, pool: int, candidates: int, seed: int, shared: bool, two_sides: bool
) -> None:
    """Prevents a candidate below a row that was not looked at, and exact scores that cost nothing."""
    generator = np.random.default_rng(seed)
    predicted, exact, other = generator.normal(size=(3, queries, pool))
    beside = other if two_sides else None
    scores, candidate = rerank(predicted, exact, candidates, shared=shared, beside=beside)
    own = [set(np.argsort(-row)[:candidates].tolist()) for row in predicted]
    if beside is not None:
        own = [
            one | set(np.argsort(-row)[:candidates].tolist()) for one, row in zip(own, beside, strict=True)
        ]
    every = set().union(*own)
    assert [set(np.flatnonzero(row).tolist()) for row in candidate] == own
    for query in range(queries):
        first = every if shared else own[query]
        rest = set(range(pool)) - first
        expected = [
            *sorted(first, key=lambda row: -exact[query, row]),
            *sorted(rest, key=lambda row: -predicted[query, row]),
        ]
        assert np.argsort(-scores[query]).tolist() == expected


def test_re_ranking_keeps_ties() -> None:
    """Prevents rows of equal exact influence from being told apart by rounding."""
    scores, _ = rerank([[0.3, 0.1, 0.1, 0.2]], [[0.5, 0.9, 0.7, 0.5]], 2, shared=True)
    assert scores[0, 0] == scores[0, 3] > scores[0, 1] == scores[0, 2]


def test_what_cannot_be_measured_is_refused() -> None:
    """Prevents NaN, or a figure over queries that have no answer."""
    with pytest.raises(ValueError, match="query 1 has no relevant row"):
        r_precision([[1.0, 2], [1, 2]], [[True, False], [False, False]])
    with pytest.raises(ValueError, match="must be equal"):
        reciprocal_rank([[1.0, 2]], [[True]])
    with pytest.raises(ValueError, match="1 values that are not finite"):
        recall_at([[1.0, np.nan]], [[True, False]], 1)
    with pytest.raises(ValueError, match="k is 0"):
        recall_at([[1.0, 2]], [[True, False]], 0)
    with pytest.raises(ValueError, match="no positive row has a weight"):
        average_precision([1.0, 2], [True, False], [0.0, 1.0])
    with pytest.raises(ValueError, match="at least 1 reference"):
        reference_scores(np.zeros((0, 3)))
    with pytest.raises(ValueError, match="pools must be equal"):
        reference_scores(np.zeros((1, 3)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="candidates is -1"):
        rerank([[1.0]], [[1.0]], -1, shared=False)
    with pytest.raises(ValueError, match="beside has shape"):
        rerank([[1.0]], [[1.0]], 1, shared=False, beside=[[1.0, 2.0]])
