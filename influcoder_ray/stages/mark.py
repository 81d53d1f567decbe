"""Mark: which tokens carry the influence of the best examples of the queries that the report shows."""

from collections.abc import Mapping

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.stages import attribute, rerank, sketch
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.folders import at_hand
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, StageState
from influcoder_ray.tables.units import Unit, plan_units

SHARES, PAIRS = "token_shares", "_state/mark/pairs"
# A query takes two passes whatever the number of its examples: those of one stay together.
QUERIES_PER_UNIT = 8


def state(root: Place) -> StageState:
    return StageState(root, "mark", (SHARES, PAIRS))


def why_left_out(settings: PipelineSettings) -> str:
    """Why there is nothing to do whatever the folder holds; empty where there may be."""
    return "" if settings.report.marked else "report.marked is 0, so no tokens are to be marked"


def check(settings: PipelineSettings) -> None:
    """Refuse a model whose influence cannot be split over tokens, or whose tokens have no place in a text.

    And another model than that of the finished sketches; reads no weights.

    Raises:
        UserError: the first of these.
    """
    from influcoder_ray.examples.tokenizer import load_tokenizer

    if settings.adapter.optimizer_state is not None:
        raise UserError(
            "report.marked: adapter.optimizer_state is set, and Adam's step is no sum over tokens, so that "
            "no influence can be split over them; set report.marked to 0"
        )
    model = at_hand(settings.model)
    tokenizer = load_tokenizer(model.path, setting="model.path", trust_remote_code=model.trust_remote_code)
    if not tokenizer.is_fast:
        raise UserError(
            "report.marked: the tokenizer of model.path cannot tell where a token stands in its text; give a "
            "folder with tokenizer.json, or set report.marked to 0"
        )
    if sketch.state(settings.root).is_complete():
        sketch.plan(settings).refuse_other()


def plan(settings: PipelineSettings) -> StagePlan:
    reranked = rerank.found(settings)
    fingerprint = Fingerprint(
        {
            "stage": "mark",
            "scheme": "token-shares-1",
            "inputs": {
                "sketch": sketch.state(settings.root).finished().digest,
                "attribute": attribute.state(settings.root).finished().digest,
                "rerank": reranked and reranked.digest,
            },
            "influence": settings.influence.model_dump(mode="json"),
            "report": settings.report.model_dump(mode="json", include={"marked", "queries"}),
        }
    )
    record = state(settings.root)
    gathering = f"pairs-{fingerprint.digest[:16]}"

    def units() -> list[Unit]:
        """The pairs, which are known once they have been gathered."""
        return plan_units(
            record.data_files(PAIRS),
            rows_per_unit=QUERIES_PER_UNIT * settings.report.marked,
            fingerprint=fingerprint.digest,
            table=SHARES,
        )

    def run(display: Display) -> Mapping[str, Manifest]:
        from influcoder_ray.stages.cluster import reserve
        from influcoder_ray.stages.units_on_ray import WorkPlan, one_unit, run_units
        from influcoder_ray.stages.work.marking import MarkWork, gather

        reservation = reserve(settings.workers.sketch)
        record.renew(fingerprint)
        gathered = one_unit(record, gathering, gather, settings, reservation)
        arguments = {"settings": settings, "threads": reservation.threads}
        marked = run_units(
            WorkPlan(record, units(), MarkWork, arguments), fingerprint, reservation, display, "examples"
        )
        return {gathering: gathered, **marked}

    known = [unit.unit_id for unit in units()] if gathering in record.manifests() else []
    renewed_by = ("report.marked", "report.queries", "inputs.rerank")
    return StagePlan(record, fingerprint, (gathering, *known), run, renewed_by=renewed_by)


def found(settings: PipelineSettings) -> Fingerprint | None:
    """The fingerprint of the marks of the present attributions, or None where there are none.

    Raises:
        UserError: the settings ask for them, and they are not there.
    """
    record = state(settings.root)
    held = record.fingerprint() if record.is_complete() else None
    if held is not None:
        reranked = rerank.found(settings)
        inputs = held.fields["inputs"]
        present = attribute.state(settings.root).finished().digest, reranked and reranked.digest
        if (inputs["attribute"], inputs["rerank"]) == present:
            return held
    if settings.report.marked:
        raise UserError(f"{settings.root / SHARES}: not there yet; run the mark stage first")
    return None
