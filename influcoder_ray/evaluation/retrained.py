"""Losses after fine-tunes on two sets of examples, compared pair by pair.

Shapes: S training seeds, Q queries. Losses are in nats, lower = better.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

from influcoder_ray.evaluation.agreement import bootstrap_rows

_CONFIDENCE = 0.95

Losses = npt.NDArray[np.floating]


def mean_loss(losses: Losses) -> dict[str, Any]:
    """The mean loss of queries after fine-tunes (S, Q) that differ in their seed.

    Returns:
        "mean", over queries and seeds; "std", over seeds (S - 1 degrees of freedom), None for one seed;
        "each", every seed's.
    """
    each = np.asarray(losses, dtype=np.float64).mean(axis=1)
    return {"mean": float(each.mean()), "std": _std(each), "each": each.tolist()}


def paired_difference(losses: Losses, rival: Losses, *, resamples: int, seed: int) -> dict[str, Any]:
    """By how much the losses (S, Q) are above a rival's (S, Q) on the same seeds and queries.

    A seed gives both fine-tunes the same first weights and the same order of what they have in common, so
    what it does to both cancels in the difference.

    Args:
        resamples: bootstrap draws of the queries.
        seed: of these draws.

    Returns:
        "mean", negative where the losses are lower than the rival's; "std" and "interval_over_seeds", of the
        S differences, the latter Student's at 95%, both None for one seed; "each", every seed's;
        "interval_over_queries", the bootstrap's percentile interval at 95%, seeds averaged; "seeds_lower"
        and "queries_lower", in how many seeds, and in which share of the queries, the losses are lower.

    Raises:
        ValueError: shapes differ or are not two-dimensional.

    Source: Student (1908); Efron (1979), the nonparametric bootstrap.
    """
    if losses.ndim != 2 or losses.shape != rival.shape:
        raise ValueError(
            f"losses have shape {losses.shape} and the rival's {rival.shape}; they make no pairs"
        )
    differences = np.asarray(losses, dtype=np.float64) - np.asarray(rival, dtype=np.float64)
    each, of_query = differences.mean(axis=1), differences.mean(axis=0)
    mean, std = float(each.mean()), _std(each)
    half = None
    if std is not None:
        half = float(student.ppf((1 + _CONFIDENCE) / 2, len(each) - 1)) * std / float(np.sqrt(len(each)))
    drawn = of_query[bootstrap_rows(len(of_query), resamples, seed)].mean(axis=1)
    tails = np.percentile(drawn, [50 * (1 - _CONFIDENCE), 50 * (1 + _CONFIDENCE)])
    return {
        "mean": mean,
        "std": std,
        "each": each.tolist(),
        "interval_over_seeds": None if half is None else [mean - half, mean + half],
        "interval_over_queries": tails.tolist(),
        "seeds_lower": int((each < 0).sum()),
        "queries_lower": float((of_query < 0).mean()),
    }


def _std(each: npt.NDArray[np.float64]) -> float | None:
    return float(np.std(each, ddof=1)) if len(each) > 1 else None
