"""Exact influence on one query: of its best candidates, and how their tokens carry it.

Shapes: N candidates, D sketch width.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from influcoder_ray.attribution.cosine import cosines
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.explain.run import Run
from influcoder_ray.gradients.contributions import (
    TokenInfluence,
    sketched_token_influence,
    token_influence,
)
from influcoder_ray.stages import rerank
from influcoder_ray.stages.signals import sketch_tables
from influcoder_ray.stages.work.sketching import as_stored
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import sketch_matrix
from influcoder_ray.tables.state import StageState


def query_sketch(run: Run, question: Example) -> np.ndarray:
    """The unit-length sketch (1, D) of a query: the run's own where it knows the query.

    Raises:
        UserError: the query has no gradient.
    """
    known = run.known_sketch(question)
    if known is not None:
        return known
    tokens = query_tokens(run, question)
    sketched = run.teacher.sketch([tokens], run.sketch)
    if sketched.faults[0]:
        raise UserError(
            f"query: its {sketched.faults[0]}"
            if "gradient" in sketched.faults[0]
            else f"query: {sketched.faults[0]}; give a shorter one"
        )
    return as_stored(sketched.sketches, np.dtype(run.settings.sketch.dtype))[1]


def query_tokens(run: Run, question: Example) -> Tokens:
    """The query's tokens.

    Raises:
        UserError: the chat template refuses it, or none of them carries a loss.
    """
    (tokens,) = run.teacher.tokens([question])
    if tokens.fault or not tokens.labelled:
        reason = tokens.fault or "it has no token to predict, so that it has no loss"
        raise UserError(f"query: {reason}; give another, or a longer response")
    return tokens


def exact_influence(run: Run, question: Example, candidates: Sequence[Example]) -> list[float | None]:
    """The exact influence of each candidate (N,), as the run's settings define it; None without gradient.

    A candidate whose sketch the run holds is not put through the model again.

    Raises:
        UserError: the query has no gradient.
    """
    if not candidates:
        return []
    asked = run.features(query_sketch(run, question))
    held = _held_sketches(run, candidates)
    missing = {c.content_hash: c for c in candidates if c.content_hash not in held}
    held |= _new_sketches(run, list(missing.values()))
    with_sketch = [c.content_hash for c in candidates if c.content_hash in held]
    if not with_sketch:
        return [None] * len(candidates)
    features = run.features(np.stack([held[content] for content in with_sketch]))
    scores = dict(zip(with_sketch, cosines(asked, features).tolist(), strict=True))
    return [scores.get(c.content_hash) for c in candidates]


def influence_by_token(run: Run, question: Example, candidates: Sequence[Example]) -> list[TokenInfluence]:
    """The exact influence of each candidate (N,), split over its tokens and the query's.

    Of whole gradients; where the settings precondition sketches, of those sketches.

    Raises:
        UserError: the settings' influence is no sum over tokens, or an example has no gradient.
    """
    if run.settings.adapter.optimizer_state is not None:
        raise UserError(
            "adapter.optimizer_state: Adam's step is no sum over tokens, so that its influence cannot be "
            "split over them; leave token highlights out for this run"
        )
    asked, tokens = query_tokens(run, question), run.teacher.tokens(candidates)
    for candidate, own in zip(candidates, tokens, strict=True):
        if own.fault or not own.labelled:
            raise UserError(
                f"{candidate.example_id}: {own.fault or 'no token to predict'}, so that it has no influence "
                "to split; leave it out"
            )
    try:
        if run.preconditioner is None:
            return token_influence(run.teacher, asked, tokens)
        return sketched_token_influence(run.teacher, run.sketch, asked, tokens, run.preconditioner.transform)
    except ValueError as error:
        raise UserError(f"query: {error}; give another") from error


def _held_sketches(run: Run, candidates: Sequence[Example]) -> dict[str, np.ndarray]:
    """The sketches (D,) that the run holds of candidates, by content."""
    settings = run.settings
    schema = schemas.sketches(settings.sketch.width, settings.sketch.dtype)
    places: list[tuple[StageState, str]] = sketch_tables(settings, "pool")
    reranked = rerank.state(settings.root)
    if reranked.is_complete():
        places.append((reranked, rerank.SKETCHES))
    wanted = pc.field("content_hash").isin(pa.array([c.content_hash for c in candidates], pa.string()))
    found: dict[str, np.ndarray] = {}
    for record, table in places:
        for shard in record.read_each(table, schema, where=wanted):
            found.update(zip(shard["content_hash"].to_pylist(), sketch_matrix(shard), strict=True))
    return found


def _new_sketches(run: Run, candidates: Sequence[Example]) -> dict[str, np.ndarray]:
    """The sketches (D,) of candidates that have a gradient, by content."""
    if not candidates:
        return {}
    teacher = run.teacher
    tokens = teacher.tokens(candidates)
    usable = [i for i, own in enumerate(tokens) if own.labelled > 0]
    sketched = teacher.sketch([tokens[i] for i in usable], run.sketch, direction=teacher.pool_direction)
    good = [place for place, fault in enumerate(sketched.faults) if not fault]
    _, unit = as_stored(sketched.sketches[good], np.dtype(run.settings.sketch.dtype))
    return {candidates[usable[place]].content_hash: row for place, row in zip(good, unit, strict=True)}
