"""What retraining has shown, in words and formatted numbers: `validation.json` in, plain values out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from influcoder_ray.report.contents import number, section
from influcoder_ray.report.wording import MISSING, count, decimal

RANDOM = "random"
_CHOOSERS = {"encoder": "the encoder", "exact": "exact influence", RANDOM: "chance"}
_SCORES = _CHOOSERS | {
    "untrained_encoder": "the untrained encoder",
    "tfidf": "TF-IDF",
    RANDOM: "random scores",
}
_LEAST_SURE = 0.05


@dataclass(frozen=True)
class LossRow:
    """The loss on held-out queries after one kind of fine-tune, and its difference to random examples'.

    Figures are formatted, in nats; what was not measured is a dash. `interval` is the difference's over
    seeds, at 95%. `better` says whether the difference is where influence wants it: lower where its
    examples were selected, higher where they were taken out; None for what is compared with nothing, or is
    no different.
    """

    trained_on: str
    loss: str
    spread: str
    difference: str
    interval: str
    seeds: str
    better: bool | None


@dataclass(frozen=True)
class ScoreRow:
    """The linear datamodelling score of one method, with its spread and the chance that it is none."""

    method: str
    score: str
    spread: str
    p_value: str


@dataclass(frozen=True)
class Validation:
    """The section: what was done, the two tables, and what they show and do not show."""

    done: str
    losses: tuple[LossRow, ...]
    scores: tuple[ScoreRow, ...]
    shown: tuple[str, ...]
    not_shown: tuple[str, ...]


def validation_section(validation: Mapping[str, Any]) -> Validation:
    """What `validation.json` holds, for a reader who has not seen it.

    A difference counts as shown where its intervals over seeds and over queries, both at 95%, leave out 0
    on the right side; a score where fewer than 5% of the permutations reach it.
    """
    losses = [row for kind in ("before", "whole", "select", "remove") for row in _rows(validation, kind)]
    shown: list[str] = []
    not_shown: list[str] = []
    for kind in ("select", "remove"):
        for method, arm in section(validation, kind).items():
            if method != RANDOM:
                sentence, sure = _verdict(validation, kind, method, section(arm, "against_random"))
                (shown if sure else not_shown).append(sentence)
    scores = []
    for method, found in section(validation, "datamodelling").items():
        scores.append(_score_row(method, found))
        if method in ("encoder", "exact"):
            sentence, sure = _score_verdict(method, found)
            (shown if sure else not_shown).append(sentence)
    return Validation(_done(validation), tuple(losses), tuple(scores), tuple(shown), tuple(not_shown))


def _done(validation: Mapping[str, Any]) -> str:
    tuning, queries = section(validation, "fine_tune"), section(validation, "queries")
    seeds = validation.get("seeds")
    repeated = f", with {len(seeds)} seeds each" if isinstance(seeds, list) and len(seeds) > 1 else ""
    return (
        f"LoRA adapters of rank {count(tuning.get('rank'))} were trained for {count(tuning.get('steps'))} "
        f"steps of {count(tuning.get('batch_size'))} examples{repeated}, on parts of a pool of "
        f"{count(validation.get('pool'))}. What they were trained on was chosen by its influence on "
        f"{count(queries.get('choosing'))} queries, and the loss was measured on "
        f"{count(queries.get('held_out'))} others. Pool and queries are of the test split, of which the "
        "encoder has seen nothing in training."
    )


def _rows(validation: Mapping[str, Any], kind: str) -> list[LossRow]:
    if kind in ("before", "whole"):
        name = {"before": "nothing: the model as it was", "whole": "the whole pool"}[kind]
        found = section(validation, kind)
        return [_row(name, found, None)] if found else []
    names = {
        "select": f"the {count(validation.get('selected'))} examples put first by",
        "remove": f"the pool without the {count(validation.get('removed'))} examples put first by",
    }
    by_chance = {
        "select": f"{count(validation.get('selected'))} random examples",
        "remove": f"the pool without {count(validation.get('removed'))} random examples",
    }
    return [
        _row(
            by_chance[kind] if method == RANDOM else f"{names[kind]} {_spoken(method, _CHOOSERS)}", arm, kind
        )
        for method, arm in section(validation, kind).items()
        if isinstance(arm, Mapping)
    ]


def _row(name: str, arm: Mapping[str, Any], kind: str | None) -> LossRow:
    loss, against = section(arm, "loss"), section(arm, "against_random")
    std, difference = number(loss.get("std")), number(against.get("mean"))
    return LossRow(
        trained_on=name,
        loss=decimal(loss.get("mean"), 4),
        spread=MISSING if std is None else decimal(std, 4),
        difference=decimal(difference, 4),
        interval=_interval(against.get("interval_over_seeds")),
        seeds=_seeds_in_words(against, kind) if against else MISSING,
        # Where chance chose the same examples, nothing is better or worse.
        better=(difference < 0) == (kind == "select") if difference else None,
    )


def _verdict(
    validation: Mapping[str, Any], kind: str, method: str, against: Mapping[str, Any]
) -> tuple[str, bool]:
    """A sentence about one difference to random examples, and whether it is beyond chance."""
    selects = kind == "select"
    sign = -1 if selects else 1
    right = sign * (number(against.get("mean")) or 0.0) > 0
    intervals = [against.get(f"interval_over_{what}") for what in ("seeds", "queries")]
    sure = all(_beyond(interval, sign) for interval in intervals)
    chosen = count(validation.get("selected" if selects else "removed"))
    doing, rival = ("Training on", "training on") if selects else ("Taking out", "taking out")
    # Not "lowers": training on a few examples may leave any loss above that of the model as it was.
    effect = f"{'leaves' if right else 'does not leave'} a {'lower' if selects else 'higher'} held-out loss"
    figures = (
        f"difference {decimal(against.get('mean'), 4)} nats, 95% interval over seeds "
        f"{_interval(intervals[0])}, over queries {_interval(intervals[1])}; {_seeds_in_words(against, kind)}"
    )
    return (
        f"{doing} the {chosen} examples that {_spoken(method, _CHOOSERS)} puts first {effect} than "
        f"{rival} {chosen} random ones{', but not beyond chance' if right and not sure else ''} ({figures}).",
        sure,
    )


def _score_verdict(method: str, found: Any) -> tuple[str, bool]:
    held = found if isinstance(found, Mapping) else {}
    mean, p_value = number(held.get("mean")), number(held.get("p_value"))
    sure = mean is not None and mean > 0 and p_value is not None and p_value < _LEAST_SURE
    effect = "foretell" if sure else "do not foretell beyond chance"
    return (
        f"The scores of {_spoken(method, _SCORES)} {effect} which random part of the pool trains better: "
        f"linear datamodelling score {decimal(mean, 3)}, p = {_p(p_value)}.",
        sure,
    )


def _score_row(method: str, found: Any) -> ScoreRow:
    held = found if isinstance(found, Mapping) else {}
    return ScoreRow(
        _spoken(method, _SCORES), decimal(held.get("mean")), decimal(held.get("std")), _p(held.get("p_value"))
    )


def _seeds_in_words(against: Mapping[str, Any], kind: str | None) -> str:
    each = against.get("each")
    if not isinstance(each, list):
        return MISSING
    sign = -1 if kind == "select" else 1
    right = sum(sign * (number(difference) or 0.0) > 0 for difference in each)
    return f"{'lower' if kind == 'select' else 'higher'} in {count(right)} of {len(each)} seeds"


def _beyond(interval: object, sign: int) -> bool:
    """Whether all of an interval lies on one side of 0: above it for a sign of 1, else below."""
    if not isinstance(interval, list) or len(interval) != 2:
        return False
    ends = [number(end) for end in interval]
    return all(end is not None and sign * end > 0 for end in ends)


def _interval(value: object) -> str:
    if not isinstance(value, list) or len(value) != 2:
        return MISSING
    return f"{decimal(value[0], 4)} to {decimal(value[1], 4)}"


def _p(value: object) -> str:
    known = number(value)
    return MISSING if known is None else f"{known:.3f}"


def _spoken(method: object, names: Mapping[str, str]) -> str:
    return names.get(str(method), str(method).replace("_", " "))
