"""Differences between methods, on the same queries and over training seeds."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.evaluation.agreement import (
    Resampled,
    bootstrap_rows,
    per_query_rho,
    point_estimates,
    resample,
)
from influcoder_ray.evaluation.comparison import lead, over_seeds

Matrix = npt.NDArray[np.float64]
RECALL_AT = (3,)


def problem(seed: int, queries: int = 8, pool: int = 12) -> tuple[Matrix, Matrix, Matrix]:
    """Exact influence and two predictions of it, both good on the same queries and bad on the same."""
    generator = np.random.default_rng(seed)
    exact = generator.normal(size=(queries, pool))
    ease = generator.uniform(-2, 4, size=(queries, 1))
    near = ease * exact + generator.normal(size=exact.shape)
    return exact, near + 0.3 * generator.normal(size=exact.shape), near


def resampled(predicted: Matrix, exact: Matrix, rows: npt.NDArray[np.int64]) -> Resampled:
    return resample(predicted, exact, recall_at=RECALL_AT, rows=rows)


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_a_lead_is_that_of_both_measured_anew_on_each_resample(seed: int) -> None:
    """Prevents differences between figures of different queries, and shares of another sign."""
    exact, encoder, rival = problem(seed)
    rows = bootstrap_rows(len(exact), 30, seed)
    found = lead(resampled(encoder, exact, rows), resampled(rival, exact, rows))

    def difference(queries: npt.NDArray[np.int64]) -> dict[str, float]:
        ours, theirs = (point_estimates(p[queries], exact[queries], RECALL_AT) for p in (encoder, rival))
        return {name: ours[name] - theirs[name] for name in ours}

    each = [difference(queries) for queries in rows]
    whole = difference(np.arange(len(exact)))
    assert found.keys() == whole.keys() == {"aggregated_rho", "per_query_rho", "recall_at_3"}
    for name, figures in found.items():
        drawn = np.array([one[name] for one in each])
        assert figures["mean"] == pytest.approx(whole[name], abs=1e-12)
        assert figures["std"] == pytest.approx(drawn.std(ddof=1), abs=1e-12)
        # Ties in exact arithmetic may fall to either side by rounding.
        assert (drawn > 1e-9).mean() <= figures["share_ahead"] <= (drawn > -1e-9).mean()


def test_where_queries_are_hard_for_both_a_paired_lead_spreads_less_than_an_unpaired_one() -> None:
    """Prevents a clear lead from drowning in what the draw of queries does to both methods alike."""
    exact, encoder, rival = problem(3, queries=40)
    rows = bootstrap_rows(40, 400, 0)
    ours, theirs = resampled(encoder, exact, rows), resampled(rival, exact, rows)
    paired = lead(ours, theirs)["per_query_rho"]["std"]
    apart = np.hypot(*(each.summary()["per_query_rho"]["std"] for each in (ours, theirs)))
    assert paired < apart / 2
    # For a mean over queries the deviation is known: the standard error of the queries' differences.
    differences = per_query_rho(encoder, exact) - per_query_rho(rival, exact)
    assert paired == pytest.approx(differences.std() / np.sqrt(40), rel=0.1)


def test_a_method_is_never_ahead_of_itself_and_a_lead_turned_round_changes_its_sign() -> None:
    """Prevents an untrained encoder that was kept from being counted as ahead of the untrained one."""
    exact, encoder, rival = problem(5)
    rows = bootstrap_rows(len(exact), 50, 1)
    ours, theirs = resampled(encoder, exact, rows), resampled(rival, exact, rows)
    for figures in lead(ours, ours).values():
        assert figures == {"mean": 0.0, "std": 0.0, "share_ahead": 0.0}
    there, back = lead(ours, theirs), lead(theirs, ours)
    for name in there:
        assert there[name]["mean"] == -back[name]["mean"]
        assert there[name]["std"] == pytest.approx(back[name]["std"])
        assert there[name]["share_ahead"] + back[name]["share_ahead"] <= 1


def test_predictions_that_were_not_resampled_alike_are_refused() -> None:
    """Prevents a difference of draws that rest on different numbers of queries or of resamples."""
    exact, encoder, rival = problem(5)
    few, many = (bootstrap_rows(len(exact), resamples, 1) for resamples in (10, 20))
    with pytest.raises(ValueError, match="no pairs"):
        lead(resampled(encoder, exact, few), resampled(rival, exact, many))
    with pytest.raises(ValueError, match="no pairs"):
        lead(resampled(encoder, exact, few), resample(rival, exact, recall_at=(), rows=few))


def test_figures_over_seeds_are_mean_and_sample_deviation_of_each() -> None:
    """Prevents the spread of a population, a third too small for two seeds."""
    found = over_seeds([{"rho": 0.5, "recall": 0.1}, {"rho": 0.7, "recall": 0.1}])
    assert found["rho"]["mean"] == pytest.approx(0.6)
    assert found["rho"]["std"] == pytest.approx(0.2 / np.sqrt(2))
    assert found["rho"]["each"] == [0.5, 0.7]
    assert found["recall"] == {"mean": 0.1, "std": 0.0, "each": [0.1, 0.1]}
    with pytest.raises(ValueError, match="1 seeds"):
        over_seeds([{"rho": 0.5}])
