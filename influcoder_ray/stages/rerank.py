"""Rerank: exact influence of each query's best examples, which decides their order."""

from collections.abc import Mapping
from types import ModuleType

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.stages import attribute, distill, embed, explore, sample, sketch
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, StageState
from influcoder_ray.tables.units import Unit, plan_units

RERANKED, SKETCHES = "reranked", "sketches/candidates"
CONTENTS, UNSKETCHED = "_state/rerank/contents", "_state/rerank/unsketched"


def state(root: Place) -> StageState:
    return StageState(root, "rerank", (RERANKED, SKETCHES, CONTENTS, UNSKETCHED))


def why_left_out(settings: PipelineSettings) -> str:
    """Why there is nothing to do whatever the folder holds; empty where there may be."""
    return "" if settings.rerank.per_query else "rerank.candidates is 0, so nothing is to be re-ranked"


def check(settings: PipelineSettings) -> None:
    """Refuse settings that are not those of the finished stages before.

    Gradients of another model, or of a corpus that has changed, would be compared with the sample's. A
    stage that is not finished yet is run first, and refuses them itself.

    Raises:
        UserError: naming the fields that differ.
    """
    for stage in _before(settings):
        if not stage.state(settings.root).is_complete():
            return
        stage.plan(settings).refuse_other()


def plan(settings: PipelineSettings) -> StagePlan:
    fingerprint = Fingerprint(
        {
            "stage": "rerank",
            "scheme": "sketched-cosine-2",
            "inputs": {
                "sketch": sketch.state(settings.root).finished().digest,
                "attribute": attribute.state(settings.root).finished().digest,
            },
            "influence": settings.influence.model_dump(mode="json"),
            # As without the setting, where it is not used.
            "rerank": settings.rerank.model_dump(
                mode="json", exclude=None if settings.rerank.text_candidates else {"text_candidates"}
            ),
        }
    )
    record = state(settings.root)
    gathering, closing = (f"{name}-{fingerprint.digest[:16]}" for name in ("contents", "reranked"))

    def units() -> list[Unit]:
        """The contents to sketch, which are known once they have been gathered."""
        return plan_units(
            record.data_files(UNSKETCHED),
            rows_per_unit=settings.sketch.rows_per_unit,
            fingerprint=fingerprint.digest,
            table=SKETCHES,
        )

    def run(display: Display) -> Mapping[str, Manifest]:
        from influcoder_ray.stages.cluster import reserve
        from influcoder_ray.stages.units_on_ray import WorkPlan, one_unit, run_units
        from influcoder_ray.stages.work.reranking import gather, order
        from influcoder_ray.stages.work.sketching import SketchWork

        reservation = reserve(settings.workers.sketch)

        record.begin(fingerprint)
        gathered = one_unit(record, gathering, gather, settings, reservation)
        display.say(f"  {_cost(gathered)}")
        arguments = sketch.work_arguments(settings, reservation.threads, SKETCHES, record.stage)
        sketched = run_units(
            WorkPlan(record, units(), SketchWork, arguments), fingerprint, reservation, display, "examples"
        )
        ordered = one_unit(record, closing, order, settings, reservation)
        return {gathering: gathered, **sketched, closing: ordered}

    known = [unit.unit_id for unit in units()] if gathering in record.manifests() else []
    return StagePlan(record, fingerprint, (gathering, *known, closing), run)


def found(settings: PipelineSettings) -> Fingerprint | None:
    """The fingerprint of the re-ranking of the present attributions, or None where there is none.

    Whoever had it made wants to see it, also where the settings at hand do not ask for it.

    Raises:
        UserError: the settings ask for one, and it is not there.
    """
    record = state(settings.root)
    held = record.fingerprint() if record.is_complete() else None
    if held is not None:
        attributions = attribute.state(settings.root).finished().digest
        if held.fields["inputs"]["attribute"] == attributions:
            return held
    if settings.rerank.per_query:
        raise UserError(f"{settings.root / RERANKED}: not there yet; run the rerank stage first")
    return None


def _before(settings: PipelineSettings) -> list[ModuleType]:
    explored = [explore] if settings.explore.examples else []
    return [sample, sketch, *explored, distill, embed, attribute]


def _cost(gathered: Manifest) -> str:
    count, held = (int(gathered.counters[name]) for name in ("contents", "contents_in_sample"))
    return f"{count:,} different candidates: {held:,} in the sample, {count - held:,} gradients to compute"
