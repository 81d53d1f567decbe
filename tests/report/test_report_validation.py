"""What the page says that retraining has shown, and what it says has not been."""

import copy
import json
from typing import Any

import numpy as np
import pytest

from influcoder_ray.report.validation import validation_section
from influcoder_ray.report.wording import MINUS, MISSING
from influcoder_ray.retraining.designs import RANDOM, Design, all_designs
from influcoder_ray.retraining.outcomes import outcomes
from influcoder_ray.retraining.specs import ValidateSpec

SPEC = ValidateSpec(seeds=3, subsets=8)
DRAW = np.random.default_rng(3)
SCORES = {"encoder": DRAW.normal(size=(12, 30)), "exact": DRAW.normal(size=(12, 30))}
SUBSETS = DRAW.random(size=(8, 30)) < 0.5


def _loss(design: Design, effect: float) -> np.ndarray:
    """Losses (Q,): the encoder helps by `effect`, exact influence not at all, and subsets go by scores."""
    base = {"before": 2.0, "whole": 1.5, "select": 1.4, "remove": 1.6, "subset": 1.7}[design.kind]
    helps = {"select": -effect, "remove": effect}.get(design.kind, 0.0) if design.by == "encoder" else 0.0
    noise = 0.01 * np.random.default_rng([design.seed, len(design.name)]).normal(size=12)
    by_scores = -0.01 * SCORES["encoder"] @ SUBSETS[design.draw] if design.kind == "subset" else 0.0
    return np.asarray(base + helps + noise + 0.1 * design.seed + by_scores)


def _validation(effect: float = 0.2) -> dict[str, Any]:
    """A validation.json as the stage writes it."""
    losses = {d: _loss(d, effect) for d in all_designs(SPEC, ("encoder", "exact"), 0)}
    found = {
        "pool": 30,
        "selected": 3,
        "removed": 3,
        "queries": {"choosing": 13, "held_out": 12},
        "seeds": [0, 1, 2],
        "fine_tune": SPEC.fine_tuning,
        **outcomes(losses, SCORES, SUBSETS, 0),
    }
    return json.loads(json.dumps(found))


def test_each_fine_tune_has_its_row_and_each_difference_its_interval() -> None:
    """Prevents a loss beside another's spread, and a difference with the wrong side called better."""
    validation = _validation()
    section = validation_section(validation)
    assert [row.trained_on for row in section.losses] == [
        "nothing: the model as it was",
        "the whole pool",
        "the 3 examples put first by the encoder",
        "the 3 examples put first by exact influence",
        "3 random examples",
        "the pool without the 3 examples put first by the encoder",
        "the pool without the 3 examples put first by exact influence",
        "the pool without 3 random examples",
    ]
    encoder = section.losses[2]
    held = validation["select"]["encoder"]
    assert encoder.loss == f"{held['loss']['mean']:.4f}"
    assert encoder.spread == f"{held['loss']['std']:.4f}"
    assert encoder.difference == f"{held['against_random']['mean']:.4f}".replace("-", MINUS)
    assert encoder.seeds == "lower in 3 of 3 seeds"
    assert section.losses[5].seeds == "higher in 3 of 3 seeds"
    assert [row.better for row in section.losses][:3] == [None, None, True]
    assert section.losses[5].better is True
    assert section.losses[4].difference == MISSING
    assert "rank 8" in section.done
    assert "with 3 seeds each" in section.done
    assert "influence on 13 queries" in section.done
    assert [row.method for row in section.scores] == ["the encoder", "exact influence", "random scores"]
    assert section.scores[0].score == f"{validation['datamodelling']['encoder']['mean']:.3f}"
    assert section.scores[2].p_value == MISSING


def test_what_is_beyond_chance_is_shown_and_the_rest_is_said_not_to_be() -> None:
    """Prevents a report that names its good news alone."""
    section = validation_section(_validation())
    assert len(section.shown) + len(section.not_shown) == 6
    shown, not_shown = (" ".join(part) for part in (section.shown, section.not_shown))
    assert "Training on the 3 examples that the encoder puts first leaves a lower held-out loss than" in shown
    assert "Taking out the 3 examples that the encoder puts first leaves a higher held-out loss than" in shown
    assert "The scores of the encoder foretell" in shown
    assert "exact influence puts first" in not_shown
    assert "The scores of exact influence do not foretell beyond chance" in not_shown


def test_an_effect_on_the_wrong_side_is_called_by_its_name() -> None:
    """Prevents a harmful choice from passing as one that merely is not proven."""
    section = validation_section(_validation(effect=-0.2))
    not_shown = " ".join(section.not_shown)
    assert "that the encoder puts first does not leave a lower held-out loss than" in not_shown
    assert "that the encoder puts first does not leave a higher held-out loss than" in not_shown
    assert "lower in 0 of 3 seeds" in not_shown
    assert section.losses[2].better is False


def test_where_chance_chose_the_same_examples_nothing_is_better() -> None:
    """Prevents "higher in 3 of 3 seeds", marked as better, beside a difference of nothing."""
    validation = _validation()
    for kind in ("select", "remove"):
        validation[kind]["encoder"]["against_random"] |= {"mean": 0.0, "each": [0.0] * 3, "seeds_lower": 0}
    rows = validation_section(validation).losses
    assert [rows[place].seeds for place in (2, 5)] == ["lower in 0 of 3 seeds", "higher in 0 of 3 seeds"]
    assert [rows[place].better for place in (2, 5)] == [None, None]


@pytest.mark.parametrize("lost", ["interval_over_seeds", "interval_over_queries"])
def test_one_seed_alone_proves_nothing(lost: str) -> None:
    """Prevents a verdict without the spread that it rests on."""
    validation = _validation()
    for kind in ("select", "remove"):
        validation[kind]["encoder"]["against_random"][lost] = None
    section = validation_section(validation)
    assert not any("puts first" in sentence for sentence in section.shown)
    assert "but not beyond chance" in section.not_shown[0]
    assert MISSING in section.not_shown[0]


def test_what_was_not_asked_for_is_left_out() -> None:
    """Prevents empty tables, or an error, where there are no seeds or no subsets."""
    validation = _validation()
    without_seeds = {k: v for k, v in validation.items() if k not in ("whole", "select", "remove")}
    assert [row.trained_on for row in validation_section(without_seeds).losses] == [
        "nothing: the model as it was"
    ]
    without_subsets = copy.deepcopy(validation)
    del without_subsets["datamodelling"]
    assert validation_section(without_subsets).scores == ()
    empty = validation_section({})
    assert (empty.losses, empty.scores, empty.shown, empty.not_shown) == ((), (), (), ())
    assert RANDOM in validation["select"]


@pytest.mark.parametrize("kind", ["select", "remove"])
def test_no_difference_is_neither_better_nor_worse(kind: str) -> None:
    """Prevents a loss that is that of random examples from being called better than theirs."""
    arm = {"loss": {"mean": 1.0}, "against_random": {"mean": 0.0}}
    (row,) = validation_section({kind: {"encoder": arm}}).losses
    assert row.better is None
