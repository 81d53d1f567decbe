"""Exploring: a first student looks through a part of the corpus for what is worth a gradient."""

from collections.abc import Iterator

import numpy as np

from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.promise import most_promising
from influcoder_ray.encoder.recipes import training
from influcoder_ray.encoder.workers import Workers
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.example import from_table, to_table
from influcoder_ray.stages import explore, sample
from influcoder_ray.stages.signals import fit_preconditioner, preconditioned, read_signals
from influcoder_ray.stages.work.embedding import load_encoder
from influcoder_ray.stages.work.scan import smallest
from influcoder_ray.stages.work.training import tokenized
from influcoder_ray.tables import schemas
from influcoder_ray.tables.state import Manifest, Output, StageState

_EXAMPLES_AT_ONCE = 4096
# Small row groups, so that units of any size can be cut from them.
_ROWS_PER_GROUP = 16


def choose(settings: PipelineSettings, record: StageState, unit_id: str, threads: int) -> Manifest:
    """Write the examples of the reservoir that the most training queries would look at.

    Queries of the other splits have no say: what is trained on may not depend on what is tested.

    Raises:
        UserError: the sample leaves no example to choose.
    """
    reservoir = _reservoir(settings, record)
    if not reservoir:
        raise UserError(
            "explore.examples: the sample holds every example of the corpus and leaves none to explore; "
            "set it to 0, or lower sample.pool"
        )
    encoder, queries = _first_student(settings, threads)
    vectors = np.concatenate(
        [encoder.embed(part, "pool")[0].astype(np.float16) for part in _parts(reservoir)]
    )
    rows = most_promising(queries, vectors, settings.explore.examples)
    chosen = [reservoir[row] for row in rows]
    output = Output(
        {explore.EXPLORED: to_table(chosen, ["train"] * len(chosen))},
        rows_in=0,
        rows_out=0,
        counters={"reservoir": len(reservoir), "explored": len(chosen)},
        rows_per_group=_ROWS_PER_GROUP,
    )
    return record.commit(unit_id, output, 0.0)


def _reservoir(settings: PipelineSettings, record: StageState) -> list[Example]:
    """Examples of the corpus, a seeded choice by content, that are not in the sample."""
    scanned = from_table(record.read(explore.RESERVOIR, schemas.EXAMPLES))
    count = settings.sample.pool + settings.explore.reservoir
    held = sample.state(settings.root).read(sample.POOL, schemas.EXAMPLES, ["content_hash"])
    in_sample = frozenset(held["content_hash"].to_pylist())
    return [e for e in smallest(scanned, settings.seed, count) if e.content_hash not in in_sample]


def _first_student(settings: PipelineSettings, threads: int) -> tuple[Encoder, np.ndarray]:
    """The encoder as it is with a head fitted to the sample, and the training queries' vectors (Q, d)."""
    encoder = load_encoder(settings.encoder, threads=threads)
    preconditioner = fit_preconditioner(settings)
    queries, pool = (
        preconditioned(read_signals(settings, side, "train", explored=False), preconditioner)
        for side in ("queries", "pool")
    )
    head_alone = settings.distill.model_copy(update={"recipe": "spectral", "epochs": 1})
    sides = tokenized(encoder, queries), tokenized(encoder, pool)
    training(encoder, *sides, head_alone, seed=settings.seed, workers=Workers()).train_epoch()
    if encoder.head is None:
        raise RuntimeError("the first epoch of the spectral recipe left no head")
    return encoder, encoder.head.of_sketches(queries.sketches, "queries").cpu().numpy()


def _parts(examples: list[Example]) -> Iterator[list[Example]]:
    for start in range(0, len(examples), _EXAMPLES_AT_ONCE):
        yield examples[start : start + _EXAMPLES_AT_ONCE]
