"""The re-ranking curve against lists that are really re-ranked."""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from influcoder_ray.evaluation.agreement import summarise
from influcoder_ray.evaluation.reranking import SHARES, candidates_of, reranking_curve

Matrix = npt.NDArray[np.float64]
quick = settings(max_examples=60, deadline=None)
RANDOM = np.random.default_rng(4)
EXACT = RANDOM.normal(size=(12, 40))
PREDICTED = EXACT + RANDOM.normal(size=EXACT.shape)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Matrix, Matrix]:
    """Two (Q, P) matrices of few distinct values, so that ties are the rule."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(2, 12)))
    values = st.integers(-3, 3).map(lambda step: step / 7)
    return draw(hnp.arrays(np.float64, shape, elements=values)), draw(
        hnp.arrays(np.float64, shape, elements=values)
    )


def curve(predicted: Matrix, exact: Matrix, ks: tuple[int, ...], **changes: Any) -> list[dict[str, Any]]:
    return reranking_curve(predicted, exact, **({"recall_at": ks, "resamples": 2, "seed": 0} | changes))


def by_falling(scores: Matrix) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))


def reranked(predicted: Matrix, exact: Matrix, known: set[int]) -> list[int]:
    """One query's list: what is known in exact order, then the rest as predicted."""
    first = sorted(known, key=lambda place: (-exact[place], place))
    return first + [place for place in by_falling(predicted) if place not in known]


def shared_share(found: list[int], truth: list[int], depth: int) -> float:
    return len(set(found[:depth]) & set(truth[:depth])) / depth


@given(pairs(), st.integers(1, 14), st.floats(0, 1))
@quick
def test_recall_and_overlap_are_those_of_lists_that_are_really_reranked(
    pair: tuple[Matrix, Matrix], k: int, share: float
) -> None:
    """Prevents a shortcut through ranks that differs from what re-ranking would do."""
    predicted, exact = pair
    (point,) = curve(predicted, exact, (k,), shares=(share,))
    own = [set(by_falling(row)[: point["candidates"]]) for row in predicted]
    recalls, overlaps, own_recalls = [], [], []
    for row in range(len(exact)):
        found = reranked(predicted[row], exact[row], set().union(*own))
        truth = by_falling(exact[row])
        shared = [shared_share(found, truth, depth) for depth in range(1, min(k, len(truth)) + 1)]
        recalls.append(shared[-1])
        overlaps.append(np.mean(shared))
        alone = reranked(predicted[row], exact[row], own[row])
        own_recalls.append(shared_share(alone, truth, min(k, len(truth))))
    assert point[f"recall_at_{k}"]["mean"] == pytest.approx(np.mean(recalls))
    assert point[f"own_recall_at_{k}"]["mean"] == pytest.approx(np.mean(own_recalls))
    assert point[f"overlap_at_{k}"]["mean"] == pytest.approx(np.mean(overlaps))


@given(pairs(), st.floats(0, 1))
@quick
def test_each_candidate_costs_one_gradient_however_many_queries_it_serves(
    pair: tuple[Matrix, Matrix], share: float
) -> None:
    """Prevents a cost of queries times candidates, where candidates of queries meet."""
    (point,) = curve(*pair, (1,), shares=(share,))
    wanted = {place for row in pair[0] for place in by_falling(row)[: point["candidates"]]}
    assert point["gradient_evaluations"] == len(wanted)
    assert point["pool_share_evaluated"] == len(wanted) / pair[0].shape[1]
    assert point["candidates"] <= len(wanted)


@given(pairs(), st.integers(1, 14))
@quick
def test_nothing_falls_with_the_share_and_the_whole_pool_is_the_exact_order(
    pair: tuple[Matrix, Matrix], k: int
) -> None:
    """Prevents a curve on which paying more finds less, and one that never arrives."""
    points = curve(*pair, (k,), shares=(0, 0.1, 0.3, 0.5, 0.8, 1))
    for name in (f"recall_at_{k}", f"overlap_at_{k}", f"own_recall_at_{k}"):
        # Fewer than k candidates, moved to the front, may move one of the exact top k out of the first k.
        enough = [point for point in points if point["candidates"] >= min(k, pair[0].shape[1])]
        means = [point[name]["mean"] for point in enough]
        assert all(after >= before - 1e-12 for before, after in pairwise(means))
        assert means[-1] == 1
        assert points[-1][name]["std"] == 0
    costs = [point["gradient_evaluations"] for point in points]
    assert costs == sorted(costs)
    assert costs[-1] == pair[0].shape[1]


@given(pairs(), st.integers(1, 14), st.floats(0, 1))
@quick
def test_gradients_of_other_queries_candidates_never_cost_recall(
    pair: tuple[Matrix, Matrix], k: int, share: float
) -> None:
    """Prevents a shared list that crowds out what a query has found by itself."""
    pool = pair[0].shape[1]
    (point,) = curve(*pair, (k,), shares=(max(share, min(k, pool) / pool),))
    assert point[f"recall_at_{k}"]["mean"] >= point[f"own_recall_at_{k}"]["mean"] - 1e-12


@given(pairs(), st.integers(1, 14))
@quick
def test_the_order_of_a_querys_own_candidates_does_not_move_its_recall(
    pair: tuple[Matrix, Matrix], k: int
) -> None:
    """Prevents a gain in order from being sold as examples that were found."""
    pool = pair[0].shape[1]
    share = min(k, pool) / pool
    before, after = curve(*pair, (k,), shares=(0, share))
    assert after[f"own_recall_at_{k}"]["mean"] == pytest.approx(before[f"recall_at_{k}"]["mean"])


def test_without_reranking_recall_and_its_spread_are_those_of_the_agreement() -> None:
    """Prevents two figures of one name in evaluation.json that differ."""
    fields: dict[str, Any] = {"recall_at": (3, 10), "resamples": 50, "seed": 7}
    plain = summarise(PREDICTED, EXACT, **fields)
    point = reranking_curve(PREDICTED, EXACT, **fields)[0]
    assert point["share"] == point["candidates"] == point["gradient_evaluations"] == 0
    for name in ("recall_at_3", "recall_at_10"):
        assert point[name] == plain[name]
        assert point[name]["std"] > 0


def test_an_error_at_the_first_place_costs_more_overlap_than_one_at_the_last() -> None:
    """Prevents a measure of the top that does not look at the top."""
    exact = np.arange(10, 0, -1)[None].astype(float)
    first, last = exact.copy(), exact.copy()
    first[0, 0], last[0, 4] = -1, -1
    scores = [curve(it, exact, (5,), shares=(0,))[0] for it in (first, last)]
    assert scores[0]["recall_at_5"]["mean"] == scores[1]["recall_at_5"]["mean"] == 0.8
    assert scores[0]["overlap_at_5"]["mean"] < scores[1]["overlap_at_5"]["mean"]


def test_the_shares_are_whole_candidates_rounded_up() -> None:
    """Prevents 1% of a small pool from being nothing, and rounding from adding a candidate."""
    assert [candidates_of(share, 100) for share in SHARES] == [0, 1, 2, 5, 10, 20]
    assert [candidates_of(share, 30) for share in SHARES] == [0, 1, 1, 2, 3, 6]
    assert candidates_of(0.07, 100) == 7
    assert [point["candidates"] for point in curve(PREDICTED, EXACT, (10,))] == [0, 1, 1, 2, 4, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predicted": np.zeros((2, 3))}, r"\(2, 3\) and exact \(12, 40\)"),
        ({"predicted": np.full((12, 40), np.nan)}, "predicted holds 480 values"),
        ({"exact": np.zeros(3)}, r"exact has shape \(3,\)"),
        ({"resamples": 1}, "resamples is 1"),
        ({"recall_at": (5, 0)}, "a k is 0"),
        ({"shares": (0.5, -0.1)}, "a share is -0.1"),
        ({"shares": (0.5, 1.1)}, "a share is 1.1"),
    ],
)
def test_what_has_no_curve_is_refused(changes: dict[str, Any], message: str) -> None:
    """Prevents NaN from ranking as a number, and a share of 20 meant as per cent."""
    fields: dict[str, Any] = {"predicted": PREDICTED, "exact": EXACT, "recall_at": (5,)}
    fields |= {"resamples": 2, "seed": 0}
    with pytest.raises(ValueError, match=message):
        reranking_curve(**(fields | changes))
