"""The choice of an epoch on the validation split, none of which was in a training step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from influcoder_ray.evaluation.agreement import aggregated_rho, per_query_rho


def epoch_figures(predicted: npt.ArrayLike, exact: npt.ArrayLike) -> dict[str, float]:
    """Both rank agreements of predicted with exact influence, (Q, P) each, on the validation split."""
    return {
        "validation_per_query_rho": float(per_query_rho(predicted, exact).mean()),
        "validation_aggregated_rho": aggregated_rho(predicted, exact),
    }


def epoch_quality(epoch: Mapping[str, Any]) -> float:
    """What the best epoch is chosen by: the mean of both rank agreements on the validation split."""
    return float(epoch["validation_per_query_rho"] + epoch["validation_aggregated_rho"]) / 2


def best_epoch(epochs: Sequence[Mapping[str, Any]], *, fall_back: bool) -> int:
    """The number of the epoch that agrees best on the validation split, the earliest of equal ones.

    Args:
        epochs: the figures of each, those of the untrained encoder (epoch 0) first.
        fall_back: whether the untrained encoder is one of the choices.
    """
    best = max(epochs if fall_back else epochs[1:], key=epoch_quality)
    return int(best["epoch"])
