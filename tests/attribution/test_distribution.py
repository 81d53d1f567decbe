"""Percentiles of scores, from histograms and from ranks."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from influcoder_ray.attribution.distribution import BINS, ScoreHistogram, percentile_of_rank

Scores = npt.NDArray[np.float32]
scores_of = hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(-1, 1, width=32))
quick = settings(max_examples=50, deadline=None)


@given(scores_of, st.lists(st.integers(0, 60), max_size=4))
@quick
def test_the_histogram_of_a_corpus_is_the_sum_of_its_shards(scores: Scores, cuts: list[int]) -> None:
    """Prevents percentiles that depend on how the corpus was cut."""
    total = ScoreHistogram.of([])
    for part in np.split(scores, sorted(min(cut, len(scores)) for cut in cuts)):
        total = ScoreHistogram.of(part) + total
    assert (total.counts == ScoreHistogram.of(scores).counts).all()
    assert total.total == len(scores)


@given(scores_of.filter(len), st.floats(-1, 1, width=32))
@quick
def test_percentile_is_exact_to_the_one_bin_that_holds_the_score(scores: Scores, score: float) -> None:
    """Prevents a percentile that counts the wrong side or loses the scores at the ends."""
    lower = np.floor(score * BINS / 2) * 2 / BINS
    at_least = 100 * np.mean(scores < lower)
    upper = lower + 2 / BINS
    at_most = 100 * np.mean(scores < upper) if upper < 1 else 100.0  # the last bin holds 1 as well
    assert at_least - 1e-9 <= ScoreHistogram.of(scores).percentile_below(score) <= at_most + 1e-9


@given(scores_of.filter(len), st.floats(-1, 1), st.floats(-1, 1))
@quick
def test_percentile_never_falls_as_the_score_rises(scores: Scores, one: float, other: float) -> None:
    """Prevents a better score from standing at a lower percentile."""
    histogram = ScoreHistogram.of(scores)
    low, high = sorted((one, other))
    assert histogram.percentile_below(low) <= histogram.percentile_below(high)
    assert histogram.percentile_below(-1) == 0
    assert histogram.percentile_below(1.0 + 1e-9) == 100


def test_every_edge_belongs_to_the_bin_above_it_and_one_to_the_last() -> None:
    """Prevents rounding from moving scores across bins, and 1.0 from falling out."""
    edges = (np.arange(BINS + 1) * 2 / BINS - 1).astype(np.float32)
    expected = np.ones(BINS, np.int64)
    expected[-1] = 2
    assert (ScoreHistogram.of(edges).counts == expected).all()


@pytest.mark.parametrize("bins", [1, 64, BINS])
def test_coarse_counts_are_numpys_histogram_of_the_scores(bins: int) -> None:
    """Prevents a figure whose bars and edges disagree."""
    scores = np.random.default_rng(0).uniform(-1, 1, size=5000)
    counts, edges = ScoreHistogram.of(scores).coarse(bins)
    expected, expected_edges = np.histogram(scores, bins=bins, range=(-1, 1))
    assert counts.tolist() == expected.tolist()
    np.testing.assert_allclose(edges, expected_edges, rtol=0, atol=1e-15)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.01, 1.01])
def test_what_is_no_cosine_is_refused(bad: float) -> None:
    """Prevents scores of another scale from piling up in the end bins."""
    with pytest.raises(ValueError, match="is no cosine"):
        ScoreHistogram.of([0.0, bad])


def test_a_score_just_below_an_edge_stays_below_it() -> None:
    """Prevents adding 1 to a tiny negative score, which rounds it up to 0."""
    histogram = ScoreHistogram.of([-1e-30, 0.0])
    assert histogram.counts[BINS // 2 - 1 : BINS // 2 + 1].tolist() == [1, 1]
    assert histogram.percentile_below(-1e-30) <= 50 == histogram.percentile_below(0.0)


def test_one_rounding_beyond_one_counts_as_one() -> None:
    """Prevents a cosine of 1.0000001 from failing a corpus."""
    assert ScoreHistogram.of([np.nextafter(np.float32(1), np.float32(2))]).counts[-1] == 1


def test_questions_without_an_answer_are_refused() -> None:
    """Prevents a percentile of nothing, bins of unequal width and counts of another shape."""
    with pytest.raises(ValueError, match="histogram is empty"):
        ScoreHistogram.of([]).percentile_below(0)
    with pytest.raises(ValueError, match="not a number"):
        ScoreHistogram.of([0]).percentile_below(float("nan"))
    with pytest.raises(ValueError, match="bins is 100"):
        ScoreHistogram.of([0]).coarse(100)
    with pytest.raises(ValueError, match="4096 int64 counts"):
        ScoreHistogram(np.zeros(10, np.int64))


@given(st.integers(1, 300), st.data())
@quick
def test_percentile_of_rank_is_the_share_of_the_others_ranked_below(n: int, data: st.DataObject) -> None:
    """Prevents a best example at 99.99 and a share that counts the example itself."""
    rank = data.draw(st.integers(1, n))
    below = sum(other > rank for other in range(1, n + 1))
    assert percentile_of_rank(rank, n) == pytest.approx(100 * below / (n - 1) if n > 1 else 100)


@pytest.mark.parametrize(("rank", "n"), [(0, 5), (6, 5), (1, 0)])
def test_a_rank_outside_the_corpus_is_refused(rank: int, n: int) -> None:
    """Prevents percentiles below 0 or above 100."""
    with pytest.raises(ValueError, match=f"rank is {rank} of {n}"):
        percentile_of_rank(rank, n)
