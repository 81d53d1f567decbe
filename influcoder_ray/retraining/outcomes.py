"""What the held-out losses say: whether what influence points at did what influence said it would.

Shapes: P pool examples, Q held-out queries, S seeds, M subsets.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from influcoder_ray.evaluation.agreement import mean_and_std
from influcoder_ray.evaluation.datamodelling import datamodelling_rho, datamodelling_summary
from influcoder_ray.evaluation.retrained import mean_loss, paired_difference
from influcoder_ray.retraining.designs import RANDOM, Design, Kind

_RESAMPLES = 1000
_RANDOM_DRAWS = 20

Losses = Mapping[Design, npt.NDArray[np.floating]]
Scores = Mapping[str, npt.NDArray[np.floating]]


def outcomes(losses: Losses, scores: Scores, subsets: npt.NDArray[np.bool_], seed: int) -> dict[str, Any]:
    """All that fine-tunes show, for `validation.json`.

    Args:
        losses: (Q,) by design, in nats.
        scores: (Q, P) by method, of the held-out queries; for the linear datamodelling score alone.
        subsets: (M, P), whether an example is in the subset of each draw.
        seed: of resampling.

    Returns:
        "before", "whole": the loss before any step, and after training on all of the pool; "select" and
        "remove": for each method the loss and, but for random parts, the difference to them
        (`evaluation.retrained`); "datamodelling": for each method the linear datamodelling score
        (`evaluation.datamodelling`). What was not trained is left out.
    """
    found: dict[str, Any] = {}
    alone: tuple[Kind, ...] = ("before", "whole")
    for kind in alone:
        held = _of(losses, kind, "")
        if len(held):
            found[kind] = {"loss": mean_loss(held)}
    parts: tuple[Kind, ...] = ("select", "remove")
    for kind in parts:
        arms = _arms(losses, kind, seed)
        if arms:
            found[kind] = arms
    if len(subsets):
        measured = np.stack([_of(losses, "subset", "", draw).mean(axis=0) for draw in range(len(subsets))])
        found["datamodelling"] = _datamodelling(scores, subsets, measured, seed)
    return found


def _arms(losses: Losses, kind: Kind, seed: int) -> dict[str, Any]:
    """The methods that choose what is selected or removed, in the designs' order, and random parts last."""
    methods = dict.fromkeys(design.by for design in losses if design.kind == kind)
    by_chance = _of(losses, kind, RANDOM)
    arms = {}
    for method in methods:
        held = _of(losses, kind, method)
        arms[method] = {"loss": mean_loss(held)}
        if method != RANDOM:
            against = paired_difference(held, by_chance, resamples=_RESAMPLES, seed=seed)
            arms[method]["against_random"] = against
    return arms


def _datamodelling(
    scores: Scores, subsets: npt.NDArray[np.bool_], measured: npt.NDArray[np.floating], seed: int
) -> dict[str, Any]:
    found = {
        method: datamodelling_summary(one, subsets, measured, resamples=_RESAMPLES, seed=seed)
        for method, one in scores.items()
    }
    generator = np.random.default_rng(seed)
    shape = (measured.shape[1], subsets.shape[1])
    draws = [
        datamodelling_rho(generator.normal(size=shape), subsets, measured).mean()
        for _ in range(_RANDOM_DRAWS)
    ]
    found[RANDOM] = mean_and_std(float(np.mean(draws)), draws)
    return found


def _of(losses: Losses, kind: Kind, by: str, draw: int | None = None) -> npt.NDArray[np.floating]:
    """The losses (S, Q) after a kind of fine-tune, by rising seed."""
    held: Sequence[Design] = [
        design
        for design in losses
        if design.kind == kind and design.by == by and (draw is None or design.draw == draw)
    ]
    return np.array([losses[design] for design in sorted(held, key=lambda design: design.seed)])
