"""The ways to rank a pool that a benchmark of known answers compares, and what each costs.

Shapes: Q test queries (of references: positive ones, then negative ones), P test rows.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.answer_encoders import Distilled, Signals
from benchmarks.answer_gradients import Gradients
from influcoder_ray.attribution.dot import dot_influence
from influcoder_ray.attribution.preconditioning import MixedHessian
from influcoder_ray.attribution.specs import InfluenceSpec
from influcoder_ray.encoder.features import text_vectors
from influcoder_ray.encoder.head import SIDES
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.evaluation.baselines import bm25_scores, tfidf_scores
from influcoder_ray.evaluation.known_answers import reference_scores, rerank
from influcoder_ray.evaluation.reranking import candidates_of
from influcoder_ray.examples import Example

Scores = npt.NDArray[np.float64]
T = TypeVar("T")

UNTRAINED, ENCODER = "untrained encoder", "encoder"
TEXT = "text vectors"
COSINE, DOT = "exact gradients, cosine", "exact gradients, dot product"
HESSIAN, ADAM = "exact gradients, mixed Hessian", "exact gradients, Adam's steps (LESS)"


@dataclass(frozen=True)
class Cost:
    """What a method takes to rank all test rows for all test queries.

    Attributes:
        sample: gradients of examples that are learnt from, whatever is asked.
        queries: gradients of test queries; rows: of test rows.
        rows_for_one_query: gradients of test rows, were one query asked alone.
        seconds: of everything but gradients, the training of an encoder included.
    """

    sample: int = 0
    queries: int = 0
    rows: int = 0
    rows_for_one_query: int = 0
    seconds: float = 0.0

    @property
    def gradients(self) -> int:
        return self.sample + self.queries + self.rows


@dataclass(frozen=True)
class Method:
    """A way to rank, with its scores (Q, P), of each training seed where it was trained."""

    name: str
    scores: list[Scores]
    cost: Cost

    def named(self, name: str) -> "Method":
        return replace(self, name=name)


@dataclass(frozen=True)
class Test:
    """The test's queries and rows, and all their gradients."""

    queries: list[Example]
    rows: list[Example]
    query_gradients: Gradients
    row_gradients: Gradients


def by_words(test: Test) -> list[Method]:
    """BM25 and TF-IDF."""
    texts = [[e.text for e in side] for side in (test.queries, test.rows)]
    methods = []
    for name, score in (("BM25", bm25_scores), ("TF-IDF", tfidf_scores)):
        found, seconds = _timed(partial(score, *texts))
        methods.append(Method(name, [found], Cost(seconds=seconds)))
    return methods


def untrained(test: Test, encoder: Encoder) -> Method:
    """The cosine of pooled vectors of the encoder as it is."""
    found, seconds = _timed(lambda: _of_texts(encoder, test)[0])
    return Method(UNTRAINED, [found], Cost(seconds=seconds))


def by_encoders(test: Test, encoders: Sequence[Distilled], sample: int) -> list[Method]:
    """The distilled encoder of each seed, of queries knowing their gradients, or their texts alone.

    And its text vectors, which come out of the same forward pass.
    """
    by_gradient, by_text, by_pooling, seconds = [], [], [], []
    for one in encoders:
        (scores, rows), taken = _timed(partial(_of_texts, one.encoder, test))
        by_text.append(scores)
        by_pooling.append(_pooled(one.encoder, test))
        seconds.append(one.seconds + taken)
        if one.encoder.head is None:
            by_gradient.append(scores)
            continue
        known = one.encoder.head.of_sketches(test.query_gradients.sketches, "queries").cpu().numpy()
        by_gradient.append(np.asarray(known @ rows.T, dtype=np.float64))
    cost = Cost(sample=sample, seconds=float(np.mean(seconds)))
    return [
        Method(ENCODER, by_gradient, replace(cost, queries=len(test.queries))),
        Method(f"{ENCODER}, of queries knowing the text alone", by_text, cost),
        Method(TEXT, by_pooling, cost),
    ]


def by_gradients(
    test: Test, training: Signals, norms: Mapping[str, npt.NDArray[np.float32]], adam: Gradients | None
) -> list[Method]:
    """The teacher's own gradients of everything, in several measures.

    The mixed Hessian is that of the training sample, as in a run of the pipeline.

    Args:
        norms: the lengths of the training sketches of each side, the train split's.
        adam: the steps that Adam would take on the test rows, where a state of it is at hand.
    """
    queries, rows = test.query_gradients, test.row_gradients
    cost = Cost(queries=len(test.queries), rows=len(test.rows), rows_for_one_query=len(test.rows))
    spec = InfluenceSpec()

    def mixed() -> Scores:
        sides = [training[side]["train"].sketches * norms[side][:, None] for side in SIDES]
        hessian = MixedHessian.fit(
            *(side.astype(np.float32) for side in sides), mixing=spec.mixing, damping=spec.damping
        )
        left, right = (
            hessian.apply(g.sketches.astype(np.float32) * g.norms[:, None]) for g in (queries, rows)
        )
        return np.asarray(left @ right.T, dtype=np.float64)

    cosine, cosine_seconds = _timed(lambda: _products(queries.sketches, rows.sketches))
    dot, dot_seconds = _timed(
        lambda: dot_influence(queries.sketches, queries.norms, rows.sketches, rows.norms).astype(np.float64)
    )
    hessian, hessian_seconds = _timed(mixed)
    sample = sum(len(training[side]["train"].examples) for side in SIDES)
    methods = [
        Method(COSINE, [cosine], replace(cost, seconds=cosine_seconds)),
        Method(DOT, [dot], replace(cost, seconds=dot_seconds)),
        Method(HESSIAN, [hessian], replace(cost, seconds=hessian_seconds, sample=sample)),
    ]
    if adam is not None:
        steps, seconds = _timed(lambda: _products(queries.sketches, adam.sketches))
        methods.append(Method(ADAM, [steps], replace(cost, seconds=seconds)))
    return methods


def as_rankings(method: Method, positives: int, negative_weight: float, *, by_label: bool) -> Method:
    """The method with one ranking a query (Q, P), or, of references, one ranking for all of them (1, P).

    Args:
        positives: how many of the queries are positive references; the others are negative ones.
    """
    if not by_label:
        return method
    scores = []
    for one in method.scores:
        negatives = one[positives:] if len(one) > positives and negative_weight else None
        scores.append(reference_scores(one[:positives], negatives, negative_weight=negative_weight)[None])
    return replace(method, scores=scores)


def reranked(first: Method, exact: Method, share: float, beside: Method | None = None) -> list[Method]:
    """A method's best rows ordered by exact influence: of all queries together, and of each alone.

    Args:
        first, exact: as rankings; the first of text similarity or an encoder.
        share: of the test rows, the candidates of each query.
        beside: a second method, of the same training seeds: each of the two then names half of the
            candidates, rounded up, so that no more gradients are paid for, and fewer where both name one row.
    """
    both = first.name if beside is None else f"{first.name} and {beside.name}"
    name = f"{both}, {100 * share:g}% re-ranked"
    candidates = candidates_of(share if beside is None else share / 2, first.scores[0].shape[1])
    others: Sequence[Scores | None] = [None] * len(first.scores) if beside is None else beside.scores
    methods = []
    for kind, shared in ((name, True), (f"{name}, own candidates alone", False)):
        found = [
            rerank(one, exact.scores[0], candidates, shared=shared, beside=other)
            for one, other in zip(first.scores, others, strict=True)
        ]
        cost = replace(
            first.cost,
            queries=exact.cost.queries,
            rows=round(float(np.mean([own.any(axis=0).sum() for _, own in found]))),
            rows_for_one_query=round(float(np.mean([own.sum(axis=1).mean() for _, own in found]))),
        )
        methods.append(Method(kind, [scores for scores, _ in found], cost))
    # One ranking has no candidates of others.
    return methods if len(first.scores[0]) > 1 else methods[:1]


def _of_texts(encoder: Encoder, test: Test) -> tuple[Scores, npt.NDArray[np.float32]]:
    """Scores (Q, P) by both sides' texts, and the rows' vectors (P, d)."""
    queries, rows = encoder.embed(test.queries, "queries")[0], encoder.embed(test.rows, "pool")[0]
    return np.asarray(queries @ rows.T, dtype=np.float64), rows


def _pooled(encoder: Encoder, test: Test) -> Scores:
    """Scores (Q, P) by both sides' text vectors."""
    reading = encoder.reading

    def vectors(examples: Sequence[Example]) -> npt.NDArray[np.float32]:
        return encoder.embed_with_traits(examples, "pool", lambda it: text_vectors(it, reading))[1]

    return np.asarray(vectors(test.queries) @ vectors(test.rows).T, dtype=np.float64)


def _products(left: np.ndarray, right: np.ndarray) -> Scores:
    return np.asarray(left.astype(np.float32) @ right.astype(np.float32).T, dtype=np.float64)


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    found = work()
    return found, time.perf_counter() - started
