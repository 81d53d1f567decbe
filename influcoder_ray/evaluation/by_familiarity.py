"""Where the encoder's ranking can be trusted: rank agreement among texts that are alike in familiarity.

Shapes: Q queries, P pool examples.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from influcoder_ray.evaluation.agreement import summarise

_BINS = 5
_LEAST_TEXTS = 10


def agreement_by_familiarity(
    predicted: npt.ArrayLike, exact: npt.ArrayLike, familiarity: npt.ArrayLike, *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Rank agreement inside bins of like familiarity, the least familiar first.

    The pool examples are cut by rank into five bins of one size, or fewer of at least ten where there are
    not enough. Inside a bin influence differs less than over the whole pool, so that the figures are
    lower than that over all; they are to be compared with one another.

    Args:
        predicted, exact: (Q, P).
        familiarity: (P,) per cent, of the pool examples.

    Returns:
        For each bin "from" and "to" (the least and the greatest familiarity in it), "pool" (its examples)
        and both rank agreements in the form of `agreement.summarise`.

    Raises:
        ValueError: as `agreement.summarise`; as many familiarities as pool examples are needed.
    """
    values = np.asarray(familiarity, dtype=np.float64)
    pair = np.asarray(predicted), np.asarray(exact)
    if values.shape != pair[0].shape[1:]:
        raise ValueError(f"familiarity has shape {values.shape} for predictions of shape {pair[0].shape}")
    order = np.argsort(values, kind="stable")
    found = []
    for rows in np.array_split(order, min(_BINS, max(1, len(order) // _LEAST_TEXTS))):
        figures = summarise(
            *(matrix[:, rows] for matrix in pair), recall_at=(), resamples=resamples, seed=seed
        )
        ends = {"from": float(values[rows[0]]), "to": float(values[rows[-1]])}
        found.append({**ends, "pool": len(rows), **figures})
    return found
