"""Evaluation: the encoder and its rivals against exact influence on the test split."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from influcoder_ray.config import PipelineSettings
from influcoder_ray.evaluation.agreement import summarise
from influcoder_ray.evaluation.baselines import random_summary, tfidf_scores
from influcoder_ray.evaluation.fidelity import sketch_fidelity
from influcoder_ray.evaluation.reranking import reranking_curve
from influcoder_ray.evaluation.splits import audit_splits
from influcoder_ray.stages import distill, sample
from influcoder_ray.stages.signals import (
    Signals,
    fit_preconditioner,
    influence,
    preconditioned,
    read_signals,
)
from influcoder_ray.stages.work.embedding import load_encoder
from influcoder_ray.stages.work.sketching import load_teacher
from influcoder_ray.tables import schemas

_RANDOM_DRAWS = 20
_SPREAD = "standard deviation over bootstrap resamples of the test queries; for random over draws"


def evaluate(settings: PipelineSettings, threads: int, board: Any) -> tuple[dict[str, Any], pa.Table]:
    """The content of evaluation.json, and every test pair's scores."""
    steps = iter(range(1, 10))

    def say(note: str) -> None:
        board.set.remote("parts", next(steps), note)

    queries, pool = (read_signals(settings, side, "test") for side in ("queries", "pool"))
    preconditioner = fit_preconditioner(settings)
    exact = influence(preconditioned(queries, preconditioner), preconditioned(pool, preconditioner))
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
    reranking = {
        name: reranking_curve(
            scores[name],
            exact,
            recall_at=recall_at,
            resamples=settings.evaluate.resamples,
            seed=settings.seed,
        )
        for name in ("encoder", "untrained_encoder")
    }
    evaluation = {
        "methods": methods,
        "reranking": reranking,
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
        schema=schemas.EVALUATION_PAIRS,
    )
    return evaluation, pairs


def _encoder_scores(spec: Any, queries: Signals, pool: Signals, threads: int) -> np.ndarray:
    encoder = load_encoder(spec, threads=threads)
    sides = encoder.embed(queries.examples, "queries")[0], encoder.embed(pool.examples, "pool")[0]
    return np.asarray(sides[0] @ sides[1].T)


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
    teacher = load_teacher(settings.model, settings.adapter, seed=settings.seed, threads=threads)
    exact = [
        teacher.gradients(teacher.tokens(side.examples[:count]), direction=direction)
        for side, direction in ((queries, None), (pool, teacher.pool_direction))
    ]
    sketches = [side.sketches[:count].astype(np.float32) for side in (queries, pool)]
    return sketch_fidelity(np.concatenate(exact), np.concatenate(sketches))
