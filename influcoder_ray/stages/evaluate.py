"""Evaluate: the encoder beside its rivals against exact influence on the test split."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from influcoder_ray.config import PipelineSettings
from influcoder_ray.evaluation.agreement import summarise
from influcoder_ray.evaluation.baselines import random_summary, tfidf_scores
from influcoder_ray.evaluation.fidelity import sketch_fidelity
from influcoder_ray.evaluation.splits import audit_splits
from influcoder_ray.stages import distill, embed, sample, sketch
from influcoder_ray.stages.cluster import reserve
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.stages.progress import Display
from influcoder_ray.stages.signals import Signals, influence, read_signals
from influcoder_ray.tables import schemas
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, Output, StageState

EVALUATION, PAIRS = "evaluation.json", "_state/evaluate/pairs"
_RANDOM_DRAWS = 20
_SPREAD = "standard deviation over bootstrap resamples of the test queries; for random over draws"
PAIRS_SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.string()),
        pa.field("example_id", pa.string()),
        pa.field("exact", pa.float32()),
        pa.field("encoder", pa.float32()),
        pa.field("untrained_encoder", pa.float32()),
    ]
)


def state(root: Place) -> StageState:
    return StageState(root, "evaluate", (EVALUATION, PAIRS))


def plan(settings: PipelineSettings) -> StagePlan:
    fingerprint = Fingerprint(
        {
            "stage": "evaluate",
            "inputs": {
                "sketch": sketch.state(settings.root).finished().digest,
                "distill": distill.state(settings.root).finished().digest,
            },
            "evaluate": settings.evaluate.model_dump(mode="json"),
        }
    )
    record = state(settings.root)
    ids = (f"evaluation-{fingerprint.digest[:16]}", f"pairs-{fingerprint.digest[:16]}")

    def run(display: Display) -> Mapping[str, Manifest]:
        record.begin(fingerprint)
        reservation = reserve(settings.workers.evaluate)
        task = ray.remote(_evaluate).options(num_cpus=reservation.cpus, num_gpus=reservation.gpus)
        started = time.monotonic()
        with display.stage("evaluate", None, "parts") as board:
            evaluation, pairs = ray.get(task.remote(settings, reservation.threads, board))
        seconds = time.monotonic() - started
        text = json.dumps(evaluation, indent=2).encode()
        return {
            ids[0]: record.commit_files(ids[0], {EVALUATION: text}, seconds=seconds, counters={}),
            ids[1]: record.commit(ids[1], Output({PAIRS: pairs}, rows_in=0, rows_out=0), 0.0),
        }

    return StagePlan(record, fingerprint, ids, run)


def _evaluate(settings: PipelineSettings, threads: int, board: Any) -> tuple[dict[str, Any], pa.Table]:
    """The content of evaluation.json, and every test pair's scores."""
    steps = iter(range(1, 10))

    def say(note: str) -> None:
        board.set.remote("parts", next(steps), note)

    queries, pool = (read_signals(settings, side, "test") for side in ("queries", "pool"))
    exact = influence(queries, pool)
    say("the distilled encoder")
    distilled = settings.encoder.model_copy(update={"path": (settings.root / distill.ENCODER).uri})
    scores = {"encoder": _encoder_scores(distilled, queries, pool, threads)}
    say("the untrained encoder")
    scores["untrained_encoder"] = _encoder_scores(settings.encoder, queries, pool, threads)
    scores["tfidf"] = tfidf_scores([e.text for e in queries.examples], [e.text for e in pool.examples])
    say("agreement")
    recall_at = settings.evaluate.recall_at
    methods = {
        name: summarise(
            predicted,
            exact,
            recall_at=recall_at,
            resamples=settings.evaluate.resamples,
            seed=settings.seed,
        )
        for name, predicted in scores.items()
    }
    methods["random"] = random_summary(exact, recall_at=recall_at, draws=_RANDOM_DRAWS, seed=settings.seed)
    evaluation = {
        "methods": methods,
        "queries": len(queries),
        "pool": len(pool),
        "spread": _SPREAD,
        "split_audit": audit_splits(_contents(settings)),
        "sketch_fidelity": _fidelity(settings, queries, pool, threads, say),
    }
    pairs = pa.table(
        {
            "query_id": np.repeat(np.array([e.example_id for e in queries.examples], object), len(pool)),
            "example_id": np.tile(np.array([e.example_id for e in pool.examples], object), len(queries)),
            "exact": exact.reshape(-1),
            "encoder": scores["encoder"].reshape(-1).astype(np.float32),
            "untrained_encoder": scores["untrained_encoder"].reshape(-1).astype(np.float32),
        },
        schema=PAIRS_SCHEMA,
    )
    return evaluation, pairs


def _encoder_scores(spec: Any, queries: Signals, pool: Signals, threads: int) -> np.ndarray:
    encoder = embed.load_encoder(spec, threads=threads)
    return np.asarray(encoder.embed(queries.examples)[0] @ encoder.embed(pool.examples)[0].T)


def _contents(settings: PipelineSettings) -> dict[str, list[str]]:
    """The content hashes of each side's splits."""
    contents = {}
    for side in ("queries", "pool"):
        table = sample.state(settings.root).read(
            f"sample/{side}", schemas.EXAMPLES, ["content_hash", "split"]
        )
        for split in ("train", "validation", "test"):
            contents[f"{side}/{split}"] = [
                row["content_hash"] for row in table.to_pylist() if row["split"] == split
            ]
    return contents


def _fidelity(
    settings: PipelineSettings, queries: Signals, pool: Signals, threads: int, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """How well sketches keep exact gradients' cosines, on half queries and half pool examples."""
    count = min(settings.evaluate.fidelity_examples // 2, len(queries), len(pool))
    if count == 0:
        return None
    say("exact gradients of a few examples")
    teacher = sketch.load_teacher(settings.model, settings.adapter, seed=settings.seed, threads=threads)
    examples = queries.examples[:count] + pool.examples[:count]
    sketches = np.concatenate([queries.sketches[:count], pool.sketches[:count]]).astype(np.float32)
    return sketch_fidelity(teacher.gradients(teacher.tokens(examples)), sketches)
