"""What shorter vectors cost: agreement by the foremost of the dimensions in which an encoder predicts.

Shapes: Q queries, P pool examples, d dimensions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from influcoder_ray.evaluation.agreement import bootstrap_rows, resample
from influcoder_ray.evaluation.comparison import lead

# Fewer than these no search is run with.
_LEAST = 8


def agreement_by_dimensions(
    queries: npt.NDArray[np.floating],
    pool: npt.NDArray[np.floating],
    exact: npt.ArrayLike,
    *,
    kept: int | None,
    recall_at: tuple[int, ...],
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Every measure by all dimensions, by half of them, by a quarter and so on down to eight.

    Args:
        queries: (Q, d) coordinates, the foremost dimension first; influence is predicted by their product
            with those of the pool.
        pool: (P, d).
        exact: (Q, P) exact influence.
        kept: a number of dimensions that is looked at besides; None for no other.

    Returns:
        For each number of dimensions, all first, "dimensions", the measures in the form of
        `agreement.summarise`, and "loss": by how much all dimensions are ahead of these, in the form of
        `comparison.lead`, on the same resamples of the queries.

    Raises:
        ValueError: as `agreement.summarise`; queries and pool do not have the same dimensions.
    """
    if queries.shape[1] != pool.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions and the pool {pool.shape[1]}")
    rows = bootstrap_rows(len(queries), resamples, seed)
    counts = _halves(queries.shape[1]) | ({kept} if kept is not None else set())
    measured = {
        count: resample(queries[:, :count] @ pool[:, :count].T, exact, recall_at=recall_at, rows=rows)
        for count in sorted(counts, reverse=True)
    }
    whole = measured[queries.shape[1]]
    return [
        {"dimensions": count, **found.summary(), "loss": lead(whole, found)}
        for count, found in measured.items()
    ]


def _halves(dimensions: int) -> set[int]:
    """All dimensions, and half as many again and again while they are at least eight."""
    found = {dimensions}
    while min(found) // 2 >= _LEAST:
        found.add(min(found) // 2)
    return found
