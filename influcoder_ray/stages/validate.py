"""Validate: small fine-tunes with and without what influence points at, and their loss on held-out queries.

Each fine-tune is a unit of its own, done whole by one worker. Ray Train divides one training among workers;
here are many small ones that have nothing to do with each other, and a pool of actors does them as it does
all other units: each once, on any number of workers, and a killed run goes on where it was.
"""

import time
from collections.abc import Mapping

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.retraining.designs import Design, all_designs
from influcoder_ray.retraining.specs import COUNTS, SCHEME
from influcoder_ray.stages import distill, embed, explore, sample, sketch
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.tables.fingerprint import Fingerprint, digest_of
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, StageState
from influcoder_ray.tables.units import Piece, Unit

VALIDATION, LOSSES = "validation.json", "validation"
POOL, QUERIES, SCORES = "_state/validate/pool", "_state/validate/queries", "_state/validate/scores"
# Whose choice of examples is trained on: the encoder's, and that of the gradients which it is distilled from.
METHODS = ("encoder", "exact")


def state(root: Place) -> StageState:
    return StageState(root, "validate", (VALIDATION, LOSSES, POOL, QUERIES, SCORES))


def why_left_out(settings: PipelineSettings) -> str:
    """Why there is nothing to do whatever the folder holds; empty where there may be."""
    wanted = settings.validate.seeds or settings.validate.subsets
    return "" if wanted else "validate.seeds and validate.subsets are 0, so nothing is to be retrained"


def check(settings: PipelineSettings) -> None:
    """Refuse settings that are not those of the finished stages before.

    A stage that is not finished yet is run first, and refuses them itself.

    Raises:
        UserError: naming the fields that differ.
    """
    explored = [explore] if settings.explore.examples else []
    for stage in (sample, sketch, *explored, distill):
        if not stage.state(settings.root).is_complete():
            return
        stage.plan(settings).refuse_other()


def designs(settings: PipelineSettings) -> list[Design]:
    """The fine-tunes that the settings ask for."""
    return all_designs(settings.validate, METHODS, settings.seed)


def plan(settings: PipelineSettings) -> StagePlan:
    own = distill.plan(settings)
    # The encoder of another sample, left from before, may have been trained on what is now the test.
    distilled = own.state.finished()
    own.refuse_other()
    distill.refuse_dimensions(settings)
    fingerprint = Fingerprint(
        {
            "stage": "validate",
            "scheme": SCHEME,
            "inputs": {
                "sketch": sketch.state(settings.root).finished().digest,
                "distill": distilled.digest,
            },
            "influence": settings.influence.model_dump(mode="json"),
            "embed": embed.vector_fields(settings),
            "validate": settings.validate.model_dump(mode="json", exclude=set(COUNTS)),
        }
    )
    record = state(settings.root)
    scoring, closing = (f"{name}-{fingerprint.digest[:16]}" for name in ("scores", "validation"))
    of_unit = {_unit_id(fingerprint, design): design for design in designs(settings)}

    def run(display: Display) -> Mapping[str, Manifest]:
        from influcoder_ray.stages.cluster import reserve
        from influcoder_ray.stages.units_on_ray import WorkPlan, one_unit, run_units
        from influcoder_ray.stages.work.validating import FineTuneWork, conclude, score

        record.begin(fingerprint)
        scored = one_unit(record, scoring, score, settings, reserve(settings.workers.evaluate))
        reservation = reserve(settings.workers.sketch)
        display.say(f"  {_plan_in_words(settings, len(of_unit))}")
        arguments = {"settings": settings, "designs": of_unit, "threads": reservation.threads}
        units = [_unit(settings, unit_id, design) for unit_id, design in of_unit.items()]
        tuned = run_units(
            WorkPlan(record, units, FineTuneWork, arguments), fingerprint, reservation, display, "examples"
        )
        started = time.monotonic()
        text = conclude(settings, record)
        # Always anew: with more fine-tunes it says more.
        concluded = record.commit_files(
            closing, {VALIDATION: text}, seconds=time.monotonic() - started, counters={}
        )
        return {scoring: scored, **tuned, closing: concluded}

    return StagePlan(record, fingerprint, (scoring, *of_unit, closing), run)


def found(settings: PipelineSettings) -> str | None:
    """The checksum of what retraining has shown of the present encoder, or None where there is nothing.

    Whoever had it made wants to see it, also where the settings at hand do not ask for it. The fingerprint
    would not do: more seeds of the same fine-tunes say more.

    Raises:
        UserError: the settings ask for it, and it is not there.
    """
    record = state(settings.root)
    if not why_left_out(settings):
        if not plan(settings).is_done():
            raise UserError(f"{settings.root / VALIDATION}: not there yet; run the validate stage first")
    elif not record.is_complete():
        return None
    held = record.fingerprint()
    if held is None or held.fields["inputs"]["distill"] != distill.state(settings.root).finished().digest:
        return None
    (file,) = record.files(VALIDATION)
    return file.sha256


def _unit_id(fingerprint: Fingerprint, design: Design) -> str:
    return digest_of([fingerprint.digest, design.name])[:16]


def _unit(settings: PipelineSettings, unit_id: str, design: Design) -> Unit:
    """A fine-tune as a unit: its rows are the examples that it takes steps on."""
    spec = settings.validate
    rows = 0 if design.kind == "before" else spec.steps * spec.batch_size
    return Unit(unit_id, (Piece(settings.root / LOSSES, design.name, None, 0, rows),), LOSSES)


def _plan_in_words(settings: PipelineSettings, count: int) -> str:
    spec = settings.validate
    return f"{count:,} fine-tunes, each of {spec.steps:,} steps of {spec.batch_size:,} examples"
