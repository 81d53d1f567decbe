"""Whether one method is better than another: their difference on the same queries, and over training seeds.

Shapes: R bootstrap resamples, S training seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from influcoder_ray.evaluation.agreement import Resampled, Summary, mean_and_std


def lead(method: Resampled, rival: Resampled) -> Summary:
    """By how much a method is ahead of a rival in each measure: a paired bootstrap over the test queries.

    Both are measured on the same resamples, so what makes a query easy or hard for both cancels: the
    deviation of the difference is not that of two separate figures.

    Returns:
        {measure: {"mean", "std", "share_ahead"}}: the difference of the estimates, the standard deviation
        of the differences over the resamples, and the share of the resamples, 0 to 1, in which the method
        is strictly ahead.

    Raises:
        ValueError: the two do not have the same measures and number of resamples.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap; for rankings of texts Sakai (2006).
    """
    shapes = [{name: draws.shape for name, draws in one.draws.items()} for one in (method, rival)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"draws of {shapes[0]} and of {shapes[1]} are no pairs")
    figures = {}
    for name, draws in method.draws.items():
        differences = draws - rival.draws[name]
        ahead = {"share_ahead": float((differences > 0).mean())}
        figures[name] = mean_and_std(method.estimates[name] - rival.estimates[name], differences) | ahead
    return figures


def over_seeds(estimates: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """The figures of S trainings that differ in their seed alone.

    Args:
        estimates: each training's figures by measure, all with the same measures.

    Returns:
        {measure: {"mean", "std", "each"}}: mean and standard deviation (S - 1 degrees of freedom) over the
        seeds, and the S figures themselves.

    Raises:
        ValueError: fewer than 2 seeds.
    """
    if len(estimates) < 2:
        raise ValueError(f"{len(estimates)} seeds have no spread; at least 2 are needed")
    columns = {name: [float(one[name]) for one in estimates] for name in estimates[0]}
    return {name: mean_and_std(float(np.mean(each)), each) | {"each": each} for name, each in columns.items()}
