"""Evaluate: the encoder beside its rivals against exact influence on the test split."""

import json
import time
from collections.abc import Mapping

from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages import distill, embed, sketch
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, Output, StageState

EVALUATION, PAIRS = "evaluation.json", "_state/evaluate/pairs"


def state(root: Place) -> StageState:
    return StageState(root, "evaluate", (EVALUATION, PAIRS))


def plan(settings: PipelineSettings) -> StagePlan:
    own = distill.plan(settings)
    # The encoder of another sample, left from before, may have been trained on what is now the test.
    distilled = own.state.finished()
    own.refuse_other()
    distill.refuse_dimensions(settings)
    fingerprint = Fingerprint(
        {
            "stage": "evaluate",
            "inputs": {
                "sketch": sketch.state(settings.root).finished().digest,
                "distill": distilled.digest,
            },
            "influence": settings.influence.model_dump(mode="json"),
            "embed": embed.vector_fields(settings),
            "evaluate": settings.evaluate.model_dump(mode="json"),
        }
    )
    record = state(settings.root)
    ids = (f"evaluation-{fingerprint.digest[:16]}", f"pairs-{fingerprint.digest[:16]}")

    def run(display: Display) -> Mapping[str, Manifest]:
        import ray

        from influcoder_ray.stages.cluster import reserve, result_of
        from influcoder_ray.stages.work.evaluation import evaluate

        for seed in distill.seeds(settings)[1:]:
            _distill(settings, seed, display)
            distill.refuse_dimensions(settings, seed)
        # Only now: an evaluation of fewer seeds stays whole until the others are trained.
        record.begin(fingerprint)
        reservation = reserve(settings.workers.evaluate)
        task = ray.remote(evaluate).options(num_cpus=reservation.cpus, num_gpus=reservation.gpus)
        started = time.monotonic()
        with display.stage("evaluate", None, "parts") as board:
            evaluation, pairs = result_of(task.remote(settings, reservation.threads, board))
        seconds = time.monotonic() - started
        text = json.dumps(evaluation, indent=2).encode()
        return {
            ids[0]: record.commit_files(ids[0], {EVALUATION: text}, seconds=seconds, counters={}),
            ids[1]: record.commit(ids[1], Output({PAIRS: pairs}, rows_in=0, rows_out=0), 0.0),
        }

    return StagePlan(record, fingerprint, ids, run, renewed_by=("evaluate.seeds",))


def _distill(settings: PipelineSettings, seed: int, display: Display) -> None:
    """Distil the encoder of a further seed, unless that is done."""
    plan = distill.plan(settings, seed)
    if plan.is_done():
        display.say(f"  the encoder of seed {seed} is distilled already")
        return
    display.say(f"  distilling with seed {seed}")
    started = time.monotonic()
    manifests = plan.run(display)
    plan.finish(settings, manifests, time.monotonic() - started)
