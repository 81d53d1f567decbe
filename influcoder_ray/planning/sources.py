"""Speeds without a clock: of a card by its name, and of a run by what it left."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.pipeline import SETTINGS, SUMMARY, settings_of_run
from influcoder_ray.planning.cards import find_card
from influcoder_ray.planning.speed import Speeds, seconds_alone
from influcoder_ray.planning.work import Kind, Work
from influcoder_ray.tables.place import Place

# Of a card's peak. Assumed, not measured: a large model keeps a card busy, an encoder's short batches less.
UTILISATION: Mapping[Kind, float] = {"gradients": 0.3, "encoder": 0.1, "training": 0.1}
# The stage that each kind of work is measured on.
_MEASURED_ON: Mapping[Kind, str] = {
    "scan": "sample",
    "gradients": "sketch",
    "encoder": "embed",
    "search": "attribute",
}


def card_speeds(
    settings: PipelineSettings, name: str, of_cpu: Speeds, *, utilisation: float | None = None
) -> Speeds:
    """What a worker with a card does in a second: its peak in the settings' number types, a share of it.

    Args:
        name: of the card, or some words of it.
        of_cpu: what does not depend on the card.
        utilisation: the share; what is assumed for each model if None.

    Raises:
        UserError: the card is not known.
    """
    encoder = "float32" if settings.encoder.dtype == "float32" else "bfloat16"
    dtypes: dict[Kind, str] = {"gradients": settings.model.dtype, "encoder": encoder, "training": encoder}
    per_second, said = dict(of_cpu.per_second), []
    for kind, dtype in dtypes.items():
        card, peak = find_card(name, dtype)
        share = utilisation if utilisation is not None else UTILISATION[kind]
        per_second[kind] = peak * share
        how = "assumed" if utilisation is None else "as given"
        said.append(f"{kind}: {share:.0%} ({how}) of the {peak / 1e12:,.1f} TFLOP/s of {card} in {dtype}")
    return replace(
        of_cpu,
        per_second=per_second,
        rests_on=(*said, *of_cpu.rests_on, "what workers take to load models is not counted"),
    )


def finished_run(folder: str) -> tuple[PipelineSettings, Mapping[str, Mapping[str, float]]]:
    """The settings of the run in an output folder, and the totals of its stages.

    Raises:
        UserError: there is none, or what it left cannot be read.
    """
    root = Place(folder).absolute()
    missing = [name for name in (SETTINGS, SUMMARY) if not (root / name).exists()]
    if missing:
        raise UserError(f"--measured: {root} holds no {missing[0]}; give the output folder of a finished run")
    try:
        stages = json.loads((root / SUMMARY).read_bytes())["stages"]
    except (ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--measured: what {root} holds cannot be read ({reason}); run it again") from error
    if not isinstance(stages, dict):
        raise UserError(f"--measured: what {root} holds is no run; give the output folder of a finished run")
    return settings_of_run(folder, option="--measured"), stages


def measured_speeds(
    folder: str, settings: PipelineSettings, works: Sequence[Work], totals: Mapping[str, Any]
) -> Speeds:
    """What a worker of a finished run did in a second, and what its stages took beside.

    Each kind of work is measured on the stage that does little else, by the tokens or rows that this had in
    the end. The other stages take the share of the time by these speeds that they took in the run: so what
    cannot be counted beforehand, such as the candidates that queries have in common, is as it was there.
    What a stage took beside its units' work is what is left of its time, had as few workers as could have
    done it shared the work.

    Args:
        folder: where the run lies.
        settings: the run's.
        works: of its stages, planned.
        totals: of its stages, measured.

    Raises:
        UserError: a stage that some speed is measured on is not finished.
    """
    done = {work.stage: totals[work.stage] for work in works if totals.get(work.stage)}
    per_second: dict[Kind, float] = {}
    for kind, stage in _MEASURED_ON.items():
        work = next((w for w in works if w.stage == stage), None)
        if stage not in done or work is None:
            raise UserError(f"--measured: {folder} has not finished {stage}; give a run that has")
        seconds = _compute_seconds(done[stage])
        per_second[kind] = work.shared[kind] * _share_done(work, done[stage]) / seconds
    # No stage does little else; how much longer it takes is in distill's share of the time.
    per_second["training"] = per_second["encoder"]
    bare = Speeds(per_second)
    shares, starts = {}, {}
    for work in works:
        if work.stage not in done:
            continue
        found = done[work.stage]
        seconds, expected = _compute_seconds(found), seconds_alone(work, bare)
        if expected and work.stage not in _MEASURED_ON.values():
            shares[work.stage] = seconds / expected
        starts[work.stage] = max(0.0, found["wall_seconds"] - seconds / _workers(settings, work, found))
    return Speeds(
        per_second,
        starts,
        shares,
        (f"speeds: {', '.join(done)} of the finished run in {folder}; a start is what each took beside",),
    )


def _share_done(work: Work, found: Mapping[str, float]) -> float:
    """How much of the work that was planned for a stage it had in the end."""
    planned, key = (work.tokens, "tokens") if found.get("tokens") else (work.rows, "rows_in")
    return found[key] / planned if planned and found.get(key) else 1.0


def _compute_seconds(found: Mapping[str, float]) -> float:
    # A stage can be so short that the clock has not moved.
    return max(float(found["compute_seconds"]), 1e-9)


def _workers(settings: PipelineSettings, work: Work, found: Mapping[str, float]) -> int:
    """How many workers a stage had: as many as the settings allow, else as few as could have done it."""
    of_sketch = ("explore", "rerank", "validate", "mark")
    stage = "sketch" if work.stage in of_sketch else work.stage
    allowed: int | None = getattr(settings.workers, stage).max
    least = math.ceil(_compute_seconds(found) / max(float(found["wall_seconds"]), 1e-9))
    return max(1, min(allowed if allowed is not None else least, work.shared_units))
