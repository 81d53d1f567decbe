"""Explore: further training examples, chosen by what a first student expects of them, and their sketches."""

from collections.abc import Mapping

from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages import sample, sketch
from influcoder_ray.stages.corpus import corpus_files
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.folders import at_hand
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.tables.fingerprint import Fingerprint, model_identity
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, StageState
from influcoder_ray.tables.units import Unit, plan_units

EXPLORED, SKETCHES = "sample/explored", "sketches/explored"
RESERVOIR = "_state/explore/reservoir"


def state(root: Place) -> StageState:
    return StageState(root, "explore", (EXPLORED, SKETCHES, RESERVOIR))


def why_left_out(settings: PipelineSettings) -> str:
    """Why there is nothing to do whatever the folder holds; empty where there may be."""
    return "" if settings.explore.examples else "explore.examples is 0, so nothing is to be explored"


def plan(settings: PipelineSettings) -> StagePlan:
    corpus = corpus_files(settings)
    encoder = at_hand(settings.encoder)
    fingerprint = Fingerprint(
        {
            "stage": "explore",
            "scheme": "first-student-1",
            "seed": settings.seed,
            "inputs": {
                "sample": sample.state(settings.root).finished().digest,
                "sketch": sketch.state(settings.root).finished().digest,
            },
            "corpus": sample.data_fields(settings.corpus, corpus),
            "encoder": encoder.model_dump(mode="json", exclude={"path"})
            | {"files": model_identity(Place(encoder.path), "encoder.path")},
            "influence": settings.influence.model_dump(mode="json"),
            "distill": settings.distill.model_dump(mode="json", include={"dimensions", "folds"}),
            "explore": settings.explore.model_dump(mode="json"),
        }
    )
    record = state(settings.root)
    scanned = plan_units(
        corpus,
        rows_per_unit=settings.sample.rows_per_unit,
        fingerprint=fingerprint.digest,
        table=RESERVOIR,
        joined="all",
    )
    choosing = f"explored-{fingerprint.digest[:16]}"

    def units() -> list[Unit]:
        """The examples to sketch, which are known once they have been chosen."""
        return plan_units(
            record.data_files(EXPLORED),
            rows_per_unit=settings.sketch.rows_per_unit,
            fingerprint=fingerprint.digest,
            table=SKETCHES,
        )

    def run(display: Display) -> Mapping[str, Manifest]:
        from influcoder_ray.stages.cluster import reserve
        from influcoder_ray.stages.units_on_ray import WorkPlan, one_unit, run_units
        from influcoder_ray.stages.work.exploring import choose
        from influcoder_ray.stages.work.scan import ScanWork
        from influcoder_ray.stages.work.sketching import SketchWork

        arguments = {
            "columns": settings.corpus.columns,
            # The sample's own contents have the smallest keys, so that they are among these.
            "count": settings.sample.pool + settings.explore.reservoir,
            "seed": settings.seed,
            "apart_from": sample.contents_of_queries(settings),
            "stage": record.stage,
        }
        reservation = reserve(settings.workers.sample)
        manifests = run_units(
            WorkPlan(record, scanned, ScanWork, arguments), fingerprint, reservation, display
        )
        reservation = reserve(settings.workers.distill)
        manifests[choosing] = one_unit(record, choosing, choose, settings, reservation)
        display.say(f"  {manifests[choosing].counters['explored']:,.0f} examples chosen by a first student")
        reservation = reserve(settings.workers.sketch)
        arguments = sketch.work_arguments(settings, reservation.threads, SKETCHES, record.stage)
        sketched = run_units(
            WorkPlan(record, units(), SketchWork, arguments), fingerprint, reservation, display, "examples"
        )
        return manifests | sketched

    known = [unit.unit_id for unit in units()] if choosing in record.manifests() else []
    return StagePlan(record, fingerprint, (*(u.unit_id for u in scanned), choosing, *known), run)
