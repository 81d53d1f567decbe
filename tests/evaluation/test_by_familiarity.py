"""Agreement among texts of like familiarity."""

import numpy as np
import pytest

from influcoder_ray.evaluation.agreement import aggregated_rho, per_query_rho
from influcoder_ray.evaluation.by_familiarity import agreement_by_familiarity

RANDOM = np.random.default_rng(3)
EXACT = RANDOM.normal(size=(8, 53))
FAMILIARITY = RANDOM.permutation(53) * 1.5
# The less familiar a text, the more its predictions are noise.
PREDICTED = EXACT + RANDOM.normal(size=EXACT.shape) * (80 - FAMILIARITY) / 20


def test_bins_are_even_ordered_and_hold_every_text_once() -> None:
    """Prevents texts that stand in two bins, or in none, and a first bin that is not the least familiar."""
    bins = agreement_by_familiarity(PREDICTED, EXACT, FAMILIARITY, resamples=5, seed=1)
    assert [row["pool"] for row in bins] == [11, 11, 11, 10, 10]
    ends = [end for row in bins for end in (row["from"], row["to"])]
    assert ends == sorted(ends)
    assert (ends[0], ends[-1]) == (0, 52 * 1.5)


def test_each_bin_has_the_agreement_of_its_own_texts() -> None:
    """Prevents figures of other columns than those that a bin names."""
    bins = agreement_by_familiarity(PREDICTED, EXACT, FAMILIARITY, resamples=5, seed=1)
    for row in bins:
        members = (row["from"] <= FAMILIARITY) & (row["to"] >= FAMILIARITY)
        block = PREDICTED[:, members], EXACT[:, members]
        assert row["per_query_rho"]["mean"] == pytest.approx(per_query_rho(*block).mean())
        assert row["aggregated_rho"]["mean"] == pytest.approx(aggregated_rho(*block))
        assert row["per_query_rho"]["std"] > 0
    assert bins[0]["per_query_rho"]["mean"] < bins[-1]["per_query_rho"]["mean"] - 0.2


@pytest.mark.parametrize(("texts", "bins"), [(1, 1), (19, 1), (20, 2), (49, 4), (500, 5)])
def test_a_small_pool_has_fewer_bins(texts: int, bins: int) -> None:
    """Prevents a rank correlation over three texts from being shown as a finding."""
    block = RANDOM.normal(size=(3, texts))
    found = agreement_by_familiarity(block, block, np.arange(texts), resamples=2, seed=0)
    assert len(found) == bins
    assert sum(row["pool"] for row in found) == texts


def test_a_familiarity_too_few_is_refused() -> None:
    """Prevents columns from being cut by other texts' familiarity."""
    with pytest.raises(ValueError, match="familiarity has shape"):
        agreement_by_familiarity(PREDICTED, EXACT, FAMILIARITY[1:], resamples=2, seed=0)
