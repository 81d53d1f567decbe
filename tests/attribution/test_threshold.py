"""Thresholds from labelled rows, against every threshold tried one by one."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from influcoder_ray.attribution.threshold import at_threshold, with_best_f1, with_precision

ROWS = st.lists(
    st.tuples(st.sampled_from([-0.5, 0.0, 0.1, 0.2, 0.7]), st.booleans()), min_size=2, max_size=30
)


def arrays(rows: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    unwanted = np.array([label for _, label in rows])
    assume(0 < unwanted.sum() < len(rows))
    return np.array([score for score, _ in rows], np.float32), unwanted


@given(ROWS, st.floats(-1, 1, width=32))
@settings(max_examples=100, deadline=None)
def test_figures_at_a_threshold_are_those_of_scikit_learn(
    rows: list[tuple[float, bool]], threshold: float
) -> None:
    """Prevents a person from trusting a precision that is another's."""
    scores, unwanted = arrays(rows)
    found = at_threshold(scores, unwanted, threshold)
    flagged = scores >= np.float32(threshold)
    assert found.flagged == flagged.sum()
    assert found.precision == pytest.approx(precision_score(unwanted, flagged, zero_division=1.0))
    assert found.recall == pytest.approx(recall_score(unwanted, flagged))
    assert found.f1 == pytest.approx(f1_score(unwanted, flagged, zero_division=0.0))
    assert found.average_precision == pytest.approx(average_precision_score(unwanted, scores))


@given(ROWS)
@settings(max_examples=100, deadline=None)
def test_no_threshold_has_a_higher_f1_and_no_higher_one_the_same(rows: list[tuple[float, bool]]) -> None:
    """Prevents taking out more than the labels ask for."""
    scores, unwanted = arrays(rows)
    best = with_best_f1(scores, unwanted)
    every = [at_threshold(scores, unwanted, t) for t in sorted(set(scores.tolist()), reverse=True)]
    highest = max(one.f1 for one in every)
    assert best == next(one for one in every if one.f1 == highest)


@given(ROWS, st.floats(0.05, 1))
@settings(max_examples=100, deadline=None)
def test_a_wanted_precision_is_reached_with_the_highest_recall_or_refused(
    rows: list[tuple[float, bool]], precision: float
) -> None:
    """Prevents a promise of precision that the labelled rows themselves break."""
    scores, unwanted = arrays(rows)
    every = [at_threshold(scores, unwanted, t) for t in sorted(set(scores.tolist()), reverse=True)]
    fitting = [one for one in every if one.precision >= precision and one.recall > 0]
    if not fitting:
        with pytest.raises(ValueError, match="no threshold has a precision"):
            with_precision(scores, unwanted, precision)
        return
    found = with_precision(scores, unwanted, precision)
    assert found.precision >= precision
    assert found.recall == max(one.recall for one in fitting)


@pytest.mark.parametrize(("labels", "what"), [([True, True], "should stay"), ([False, False], "should go")])
def test_labels_of_one_kind_are_refused(labels: list[bool], what: str) -> None:
    """Prevents a threshold from nothing to compare with."""
    with pytest.raises(ValueError, match=what):
        with_best_f1(np.array([0.1, 0.2], np.float32), np.array(labels))
