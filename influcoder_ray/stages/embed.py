"""Embed: the unit vector of every corpus row by the distilled encoder, and of every query."""

from collections.abc import Mapping
from typing import Any

from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages import distill, sample
from influcoder_ray.stages.corpus import corpus_files
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, StageState
from influcoder_ray.tables.units import plan_units

CORPUS, QUERIES = "embeddings", "query_embeddings"


def state(root: Place) -> StageState:
    return StageState(root, "embed", (CORPUS, QUERIES))


def _texts(settings: PipelineSettings) -> dict[str, Any]:
    """The setting by which rows have a second vector, if there is one.

    In a finished folder that has them it is the one by which they were made, whoever asks for them now or no
    longer does: they are the same vectors, and stand in nobody's way.
    """
    by_rerank, by_filter = {"rerank": {"text_candidates": "any"}}, {"filter": {"measure": "text"}}
    own: dict[str, Any] = {}
    if settings.keeps_texts:
        own = by_rerank if settings.rerank.text_candidates else by_filter
    record = state(settings.root)
    held = record.fingerprint()
    there = [mark for mark in (by_rerank, by_filter) if held and mark.items() <= held.fields.items()]
    return there[0] if there and there != [own] and record.is_complete() else own


def vector_fields(settings: PipelineSettings) -> dict[str, Any]:
    """What of the stage's settings decides the numbers of vectors as they are before they are kept.

    `dimensions` is a field only where it is set, so that older folders stay what they are.
    """
    unset = {"dimensions"} if settings.embed.dimensions is None else None
    return settings.embed.model_dump(mode="json", include={"query_vectors", "dimensions"}, exclude=unset)


def plan(settings: PipelineSettings) -> StagePlan:
    sampled, distilled = sample.state(settings.root), distill.state(settings.root)
    inputs = {"sample": sampled.finished().digest, "distill": distilled.finished().digest}
    distill.refuse_dimensions(settings)
    files = corpus_files(settings)
    fingerprint = Fingerprint(
        {
            "stage": "embed",
            "inputs": inputs,
            "corpus": sample.data_fields(settings.corpus, files),
            "encoder": settings.encoder.model_dump(mode="json", exclude={"path"}),
            "embed": settings.embed.model_dump(mode="json", exclude={"dimensions"}) | vector_fields(settings),
        }
        | _texts(settings)
    )
    units = [
        unit
        for source, table in ((sampled.data_files(sample.QUERIES), QUERIES), (files, CORPUS))
        for unit in plan_units(
            source,
            rows_per_unit=settings.embed.rows_per_unit,
            fingerprint=fingerprint.digest,
            table=table,
            joined="counted" if table == CORPUS else "none",
        )
    ]
    record = state(settings.root)

    def run(display: Display) -> Mapping[str, Manifest]:
        from influcoder_ray.stages.cluster import reserve
        from influcoder_ray.stages.units_on_ray import WorkPlan, run_units
        from influcoder_ray.stages.work.embedding import EmbedWork

        reservation = reserve(settings.workers.embed)
        folder = settings.root / distill.ENCODER
        arguments = {
            "settings": settings,
            "encoder": folder.uri,
            "corpus": CORPUS,
            "threads": reservation.threads,
        }
        return run_units(WorkPlan(record, units, EmbedWork, arguments), fingerprint, reservation, display)

    return StagePlan(record, fingerprint, tuple(u.unit_id for u in units), run)
