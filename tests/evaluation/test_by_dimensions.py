"""Agreement by the foremost dimensions alone."""

import numpy as np
import pytest

from influcoder_ray.evaluation.agreement import point_estimates
from influcoder_ray.evaluation.by_dimensions import agreement_by_dimensions

RANDOM = np.random.default_rng(4)
# The foremost dimensions hold the most.
SPREAD = np.arange(1, 41) ** -0.5
QUERIES, POOL = RANDOM.normal(size=(9, 40)) * SPREAD, RANDOM.normal(size=(60, 40)) * SPREAD
EXACT = QUERIES @ POOL.T


def measured(kept: int | None = None) -> list[dict[str, object]]:
    return agreement_by_dimensions(QUERIES, POOL, EXACT, kept=kept, recall_at=(5,), resamples=10, seed=2)


@pytest.mark.parametrize(("kept", "counts"), [(None, [40, 20, 10]), (20, [40, 20, 10]), (3, [40, 20, 10, 3])])
def test_dimensions_are_halved_down_to_eight_and_those_that_are_kept_are_among_them(
    kept: int | None, counts: list[int]
) -> None:
    """Prevents a setting whose cost the evaluation does not say, or says twice."""
    assert [row["dimensions"] for row in measured(kept)] == counts


def test_each_row_has_the_figures_of_its_foremost_dimensions_and_what_all_are_ahead() -> None:
    """Prevents figures of the last dimensions, and a loss whose sign is turned round."""
    rows = measured()
    for row in rows:
        count = row["dimensions"]
        expected = point_estimates(QUERIES[:, :count] @ POOL[:, :count].T, EXACT, (5,))
        whole = point_estimates(EXACT, EXACT, (5,))
        for name, value in expected.items():
            assert row[name]["mean"] == pytest.approx(value)  # type: ignore[index]
            assert row["loss"][name]["mean"] == pytest.approx(whole[name] - value)  # type: ignore[index]
    recalls = [row["recall_at_5"]["mean"] for row in rows]  # type: ignore[index]
    assert recalls == sorted(recalls, reverse=True)
    assert recalls[-1] < 1


def test_an_encoder_of_few_dimensions_has_one_row() -> None:
    """Prevents rows of nothing where there is nothing to halve."""
    few = agreement_by_dimensions(
        QUERIES[:, :9], POOL[:, :9], EXACT, kept=None, recall_at=(), resamples=2, seed=0
    )
    assert [row["dimensions"] for row in few] == [9]
    with pytest.raises(ValueError, match="queries have 40 dimensions and the pool 9"):
        agreement_by_dimensions(QUERIES, POOL[:, :9], EXACT, kept=None, recall_at=(), resamples=2, seed=0)
