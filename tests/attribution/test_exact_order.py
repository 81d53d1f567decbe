"""Exact re-ranking: a pair's score is its cosine whatever stands beside it, and the order follows it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from influcoder_ray.attribution import reranking
from influcoder_ray.attribution.reranking import exact_order, exact_scores

quick = settings(max_examples=60, deadline=None)
SCORES = st.sampled_from([np.nan, -1.0, -0.5, 0.0, 0.5, 1.0])


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=SCORES))
@quick
def test_the_order_is_a_stable_sort_with_what_has_no_score_behind(scores: np.ndarray) -> None:
    """Prevents an example without a gradient from passing one that has one, and ties from wandering."""
    for row, places in zip(scores.tolist(), exact_order(scores).tolist(), strict=True):
        known = [place for place in range(len(row)) if not np.isnan(row[place])]
        unknown = [place for place in range(len(row)) if np.isnan(row[place])]
        assert places == sorted(known, key=lambda place, of=row: (-of[place], place)) + unknown


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("numbers", [1, 100, 1 << 22])
def test_scores_are_the_cosines_of_the_named_pairs_to_the_last_bit_in_any_block(
    dtype: type, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a score that depends on which candidates were sketched in one unit."""
    random = np.random.default_rng(1)
    queries = random.normal(size=(5, 33)).astype(dtype)
    candidates = random.normal(size=(7, 33)).astype(dtype)
    of_query, of_candidate = random.integers(5, size=40), random.integers(7, size=40)
    monkeypatch.setattr(reranking, "_NUMBERS", numbers)
    found = exact_scores(queries, candidates, of_query, of_candidate)
    left, right = (side.astype(np.float64) for side in (queries[of_query], candidates[of_candidate]))
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    np.testing.assert_allclose(found, (left * right).sum(axis=1) / lengths, atol=1e-6)
    for pair in range(0, 40, 7):
        alone = exact_scores(queries, candidates, of_query[[pair]], of_candidate[[pair]])
        assert alone[0] == found[pair]


def test_sketches_of_different_widths_are_refused() -> None:
    """Prevents sketches of two settings from being compared."""
    none = np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match="width 3; the queries have 2"):
        exact_scores(np.zeros((1, 2), np.float32), np.zeros((1, 3), np.float32), none, none)
