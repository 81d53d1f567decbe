"""Evaluation: the encoder and its rivals against exact influence on the test split."""

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.head import Side
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.specs import HISTORY
from influcoder_ray.evaluation.agreement import bootstrap_rows, point_estimates, resample
from influcoder_ray.evaluation.baselines import bm25_scores, random_summary, resample_random, tfidf_scores
from influcoder_ray.evaluation.by_dimensions import agreement_by_dimensions
from influcoder_ray.evaluation.by_familiarity import agreement_by_familiarity
from influcoder_ray.evaluation.comparison import lead, over_seeds
from influcoder_ray.evaluation.fidelity import sketch_fidelity
from influcoder_ray.evaluation.reranking import reranking_curve
from influcoder_ray.evaluation.splits import audit_splits, near_duplicates
from influcoder_ray.examples.example import from_table
from influcoder_ray.stages import distill, sample
from influcoder_ray.stages.signals import (
    SPLITS,
    Signals,
    contents_of,
    fit_preconditioner,
    influence,
    preconditioned,
    read_signals,
)
from influcoder_ray.stages.work.device import prepare_device
from influcoder_ray.stages.work.embedding import (
    embed_familiarly,
    load_encoder,
    load_familiarity,
    load_student,
)
from influcoder_ray.stages.work.query_vectors import of_gradients, with_gradients
from influcoder_ray.stages.work.sketching import load_teacher
from influcoder_ray.tables import schemas

_RANDOM_DRAWS = 20
_SPREAD = "standard deviation over bootstrap resamples of the test queries; for random over draws"
_SEED_SPREAD = "; for a mean over training seeds, over those"


def evaluate(settings: PipelineSettings, threads: int, board: Any) -> tuple[dict[str, Any], pa.Table]:
    """The content of evaluation.json, and every test pair's scores."""
    steps = itertools.count(1)

    def say(note: str) -> None:
        board.set.remote("parts", next(steps), note)

    queries, pool = (read_signals(settings, side, "test") for side in ("queries", "pool"))
    preconditioner = fit_preconditioner(settings)
    exact = influence(preconditioned(queries, preconditioner), preconditioned(pool, preconditioner))
    say("the distilled encoder")
    seeds = distill.seeds(settings)
    scores = distilled_scores(settings, seeds[0], queries, pool, threads)
    say("the untrained encoder")
    untrained = load_encoder(settings.encoder, threads=threads)
    scores["untrained_encoder"] = (
        text_vectors(untrained, queries, "queries") @ text_vectors(untrained, pool, "pool").T
    )
    texts = [[e.text for e in side.examples] for side in (queries, pool)]
    scores |= {"tfidf": tfidf_scores(*texts), "bm25": bm25_scores(*texts)}
    further = []
    for seed in seeds[1:]:
        say(f"the encoder of seed {seed}")
        further.append(distilled_scores(settings, seed, queries, pool, threads)["encoder"])
    say("agreement")
    reranking = {
        name: reranking_curve(
            scores[name],
            exact,
            recall_at=settings.evaluate.recall_at,
            resamples=settings.evaluate.resamples,
            seed=settings.seed,
        )
        for name in ("encoder", "untrained_encoder")
    }
    evaluation = {
        **_comparison(settings, scores, further, exact),
        "reranking": reranking,
        "queries": len(queries),
        "pool": len(pool),
        "seeds": list(seeds),
        "chosen_epochs": [_chosen_epoch(settings, seed) for seed in seeds],
        "spread": _SPREAD + (_SEED_SPREAD if further else ""),
        **_in_detail(settings, queries, pool, scores["encoder"], exact, threads),
        "split_audit": _audit(settings, queries, pool),
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


def _comparison(
    settings: PipelineSettings,
    scores: Mapping[str, np.ndarray],
    further: Sequence[np.ndarray],
    exact: np.ndarray,
) -> dict[str, Any]:
    """Each method's figures, and by how much the encoder is ahead of each rival.

    Args:
        scores: (Q, P) by method; "encoder" is the run's own.
        further: (Q, P) of the encoders of further seeds.
    """
    recall_at, seed = settings.evaluate.recall_at, settings.seed
    rows = bootstrap_rows(len(exact), settings.evaluate.resamples, seed)
    resampled = {n: resample(p, exact, recall_at=recall_at, rows=rows) for n, p in scores.items()}
    methods: dict[str, dict[str, Any]] = {name: dict(each.summary()) for name, each in resampled.items()}
    methods["random"] = dict(random_summary(exact, recall_at=recall_at, draws=_RANDOM_DRAWS, seed=seed))
    rivals = {name: each for name, each in resampled.items() if name != "encoder"}
    rivals["random"] = resample_random(exact, recall_at=recall_at, draws=_RANDOM_DRAWS, rows=rows, seed=seed)
    leads: dict[str, dict[str, Any]] = {
        name: dict(lead(resampled["encoder"], rival)) for name, rival in rivals.items()
    }
    if further:
        own = resampled["encoder"].estimates
        each = [own, *(point_estimates(predicted, exact, recall_at) for predicted in further)]
        _add_seeds(methods["encoder"], each)
        for name, rival in rivals.items():
            _add_seeds(leads[name], [{k: one[k] - rival.estimates[k] for k in one} for one in each])
    return {"methods": methods, "leads": leads}


def _add_seeds(figures: dict[str, Any], estimates: Sequence[Mapping[str, float]]) -> None:
    """Put the spread over seeds beside each figure's own."""
    for name, spread in over_seeds(estimates).items():
        figures[name] = figures[name] | {"seeds": spread}


def distilled_scores(
    settings: PipelineSettings, seed: int, queries: Signals, pool: Signals, threads: int
) -> dict[str, np.ndarray]:
    """The scores (Q, P) of a distilled encoder as `attribute` finds them; those of texts alone if others."""
    folder = distill.encoder_folder(settings, seed)
    encoder = load_student(settings, folder.uri, prepare_device(threads))
    by_text, of_pool = text_vectors(encoder, queries, "queries"), text_vectors(encoder, pool, "pool")
    vectors, known = with_gradients(by_text, queries.examples, of_gradients(settings, encoder))
    scores = {"encoder": vectors @ of_pool.T}
    return scores | {"encoder_by_text": by_text @ of_pool.T} if known else scores


def _chosen_epoch(settings: PipelineSettings, seed: int) -> int:
    """The epoch whose encoder was kept; 0 is the untrained one."""
    history = json.loads((distill.encoder_folder(settings, seed) / HISTORY).read_bytes())
    return int(history["chosen_epoch"])


def text_vectors(encoder: Encoder, signals: Signals, side: Side) -> np.ndarray:
    """Unit vectors (N, d) of examples by their texts alone."""
    return encoder.embed(signals.examples, side)[0]


def _in_detail(
    settings: PipelineSettings,
    queries: Signals,
    pool: Signals,
    predicted: np.ndarray,
    exact: np.ndarray,
    threads: int,
) -> dict[str, list[dict[str, Any]]]:
    """The distilled encoder's agreement by familiarity, and by dimensions, whichever of them are kept.

    By dimensions there is nothing to say of an encoder without a head.
    """
    folder = distill.encoder_folder(settings, settings.seed)
    encoder = load_encoder(settings.encoder.model_copy(update={"path": folder.uri}), threads=threads)
    measure = load_familiarity(encoder)["pool"]
    of_pool, familiarity, _, _ = embed_familiarly(encoder, pool.examples, "pool", measure)
    drawn = {"resamples": settings.evaluate.resamples, "seed": settings.seed}
    found = {"agreement_by_familiarity": agreement_by_familiarity(predicted, exact, familiarity, **drawn)}
    if encoder.head is None:
        return found
    by_text, known = text_vectors(encoder, queries, "queries"), of_gradients(settings, encoder)
    vectors, _ = with_gradients(by_text, queries.examples, known)
    return found | {
        "agreement_by_dimensions": agreement_by_dimensions(
            # What fills a vector up to length one is no dimension.
            vectors[:, :-2],
            of_pool[:, :-2],
            exact,
            kept=settings.embed.dimensions,
            recall_at=settings.evaluate.recall_at,
            **drawn,
        )
    }


def _audit(settings: PipelineSettings, queries: Signals, pool: Signals) -> dict[str, Any]:
    """What the splits have in common: contents, and test texts that are nearly one of training."""
    sides = ("queries", "pool")
    contents = {f"{side}/{split}": contents_of(settings, side, split) for side in sides for split in SPLITS}
    near = {
        f"{side}/test": near_duplicates(
            itertools.chain.from_iterable(
                _texts(settings, other, contents[f"{other}/train"]) for other in sides
            ),
            [e.text for e in test.examples],
        )
        for side, test in zip(sides, (queries, pool), strict=True)
    }
    return audit_splits(contents) | {"near_duplicates": near}


def _texts(settings: PipelineSettings, side: str, contents: Collection[str]) -> Iterator[str]:
    """The texts of the sampled examples with these contents, a few at a time."""
    record, wanted = sample.state(settings.root), frozenset(contents)
    for file in record.files(f"sample/{side}"):
        with (record.root / file.path).open() as stream:
            for batch in pq.ParquetFile(stream).iter_batches():
                for example in from_table(pa.Table.from_batches([batch])):
                    if example.content_hash in wanted:
                        yield example.text


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
