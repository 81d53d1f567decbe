"""Sketch: every sampled example's loss gradient, by the teacher, as a CountSketch."""

from collections.abc import Mapping
from typing import Any

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.gradients.specs import SketchSpec, scheme
from influcoder_ray.stages import sample
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.folders import at_hand
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.tables.fingerprint import Fingerprint, model_identity
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, StageState
from influcoder_ray.tables.units import plan_units

POOL, QUERIES = "sketches/pool", "sketches/queries"


def state(root: Place) -> StageState:
    return StageState(root, "sketch", (POOL, QUERIES))


def check(settings: PipelineSettings) -> None:
    """Refuse a model that is none, or an adapter that fits none of its modules; reads no weights.

    Raises:
        UserError: the first of these.
    """
    from influcoder_ray.examples.tokenizer import load_tokenizer
    from influcoder_ray.gradients.adapter import find_targets
    from influcoder_ray.gradients.loading import load_config
    from influcoder_ray.gradients.optimizer import state_of

    model, adapter = at_hand(settings.model), at_hand(settings.adapter)
    state_of(adapter, find_targets(load_config(model), adapter))
    tokenizer = load_tokenizer(model.path, setting="model.path", trust_remote_code=model.trust_remote_code)
    if model.template == "chat" and not tokenizer.chat_template:
        raise UserError(f"model.template: {model.path} has no chat template; use plain or auto")


def work_arguments(settings: PipelineSettings, threads: int, pool_table: str, stage: str) -> dict[str, Any]:
    """What `SketchWork` is made of, for this stage and for others that sketch more of the corpus."""
    return {
        "model": settings.model,
        "adapter": settings.adapter,
        "sketch": SketchSpec(width=settings.sketch.width, dtype=settings.sketch.dtype),
        "seed": settings.seed,
        "threads": threads,
        "pool_table": pool_table,
        "stage": stage,
    }


def plan(settings: PipelineSettings) -> StagePlan:
    model, adapter = at_hand(settings.model), at_hand(settings.adapter)
    sampled = sample.state(settings.root)
    fingerprint = Fingerprint(
        {
            "stage": "sketch",
            "scheme": scheme(model.dtype),
            "seed": settings.seed,
            "inputs": {"sample": sampled.finished().digest},
            "model": model.model_dump(mode="json", exclude={"path"})
            | {"files": model_identity(Place(model.path), "model.path")},
            "adapter": adapter.model_dump(mode="json", exclude={"path"})
            | {
                "files": model_identity(Place(adapter.path), "adapter.path", marker="adapter_config.json")
                if adapter.path
                else None
            },
            "sketch": settings.sketch.model_dump(mode="json"),
        }
    )
    units = [
        unit
        for source, table in ((sample.QUERIES, QUERIES), (sample.POOL, POOL))
        for unit in plan_units(
            sampled.data_files(source),
            rows_per_unit=settings.sketch.rows_per_unit,
            fingerprint=fingerprint.digest,
            table=table,
        )
    ]
    record = state(settings.root)

    def run(display: Display) -> Mapping[str, Manifest]:
        from influcoder_ray.gradients.adapter import find_targets
        from influcoder_ray.gradients.coverage import coverage
        from influcoder_ray.gradients.loading import load_config
        from influcoder_ray.stages.cluster import reserve
        from influcoder_ray.stages.units_on_ray import WorkPlan, run_units
        from influcoder_ray.stages.work.sketching import SketchWork

        config = load_config(model)
        left_out = coverage(config, find_targets(config, adapter)).sentence()
        if left_out:
            display.say(f"  {left_out}")
        reservation = reserve(settings.workers.sketch)
        arguments = work_arguments(settings, reservation.threads, POOL, record.stage)
        return run_units(
            WorkPlan(record, units, SketchWork, arguments), fingerprint, reservation, display, "examples"
        )

    return StagePlan(record, fingerprint, tuple(u.unit_id for u in units), run)
