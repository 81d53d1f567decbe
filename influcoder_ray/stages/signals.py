"""The teacher's signals of one split: examples and their sketches, matched and in a fixed order."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from influcoder_ray.attribution.preconditioning import MixedHessian
from influcoder_ray.config import PipelineSettings
from influcoder_ray.examples import Example
from influcoder_ray.examples.example import from_table
from influcoder_ray.gradients.specs import SketchSpec
from influcoder_ray.stages import explore, sample, sketch
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import sketch_matrix
from influcoder_ray.tables.state import StageState

_ROWS_AT_ONCE = 1024
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Signals:
    """Examples (N,) of one side and split with their unit-length sketches (N, D).

    The sketches are as stored, or what `preconditioned` has made of them. `total` counts the examples
    of the whole split, of which these may be a part.
    """

    examples: list[Example]
    sketches: np.ndarray
    total: int

    def __len__(self) -> int:
        return len(self.examples)


def read_signals(
    settings: PipelineSettings,
    side: str,
    split: str,
    part: slice = slice(None),
    *,
    explored: bool = True,
    scratch: Path | None = None,
) -> Signals:
    """The sketched examples of one side and split, in order of content hash.

    Args:
        side: "pool" or "queries".
        split: "train", "validation" or "test".
        part: which of them, in that order; the others' sketches are never held in memory together.
        explored: whether to count in, in training, what the settings have explored beyond the sample.
        scratch: a folder for the sketches, which are then mapped into memory and not held there: 2 D bytes
            each at float16, 32 GB for a million of width 16,384.
    """
    schema = schemas.sketches(settings.sketch.width, settings.sketch.dtype)
    hashes = contents_of(settings, side, split, explored=explored)
    mine = hashes[part]
    wanted = pc.field("content_hash").isin(pa.array(mine, pa.string()))
    sketches = _rows_for(len(mine), settings.sketch, scratch and scratch / f"{side}-{split}.npy")
    place = {content: row for row, content in enumerate(mine)}
    for record, table in sketch_tables(settings, side, explored=explored):
        for shard in record.read_each(table, schema, where=wanted):
            rows = [place[content] for content in shard["content_hash"].to_pylist()]
            sketches[rows] = sketch_matrix(shard)
    by_hash = {e.content_hash: e for e in _examples(settings, side, wanted, explored)}
    return Signals([by_hash[h] for h in mine], sketches, len(hashes))


def contents_of(settings: PipelineSettings, side: str, split: str, *, explored: bool = True) -> list[str]:
    """The content hashes of the sketched examples of one side and split, sorted; no sketch is held.

    What trains, validates and tests reads these and no others, so these are what an audit looks at.
    """
    schema = schemas.sketches(settings.sketch.width, settings.sketch.dtype)
    in_split = pc.field("split") == split
    found: list[str] = []
    for record, table in sketch_tables(settings, side, explored=explored):
        rows = record.read(table, schema, ["content_hash", "split"], in_split)
        found += rows["content_hash"].to_pylist()
    return sorted(found)


def read_examples(settings: PipelineSettings, side: str, split: str) -> list[Example]:
    """The sketched examples of one side and split, in order of content hash; no sketch is read."""
    wanted = pc.field("content_hash").isin(pa.array(contents_of(settings, side, split), pa.string()))
    return sorted(_examples(settings, side, wanted, explored=True), key=lambda e: e.content_hash)


def sketch_tables(
    settings: PipelineSettings, side: str, *, explored: bool = True
) -> list[tuple[StageState, str]]:
    """Where the sketches of a side lie: the sample's, and what the settings have explored beyond it."""
    beyond = [(explore.state(settings.root), explore.SKETCHES)]
    wanted = explored and side == "pool" and settings.explore.examples
    return [(sketch.state(settings.root), f"sketches/{side}"), *(beyond if wanted else [])]


def fit_preconditioner(settings: PipelineSettings) -> MixedHessian | None:
    """The mixed Hessian of the training sketches of both sides, or None where the settings want none.

    None reads nothing. Else the caller holds every training sketch at float32, 4 D bytes each, however
    many workers share the training: one of them alone cannot know what all queries have in common.
    Validation and test examples have no part in it.
    """
    if settings.influence.preconditioner == "none":
        return None
    queries, pool = (_training_sketches(settings, side) for side in ("queries", "pool"))
    return MixedHessian.fit(
        queries, pool, mixing=settings.influence.mixing, damping=settings.influence.damping
    )


def preconditioned(signals: Signals, preconditioner: MixedHessian | None) -> Signals:
    """The signals with their sketches as influence compares them; the same ones without preconditioner."""
    if preconditioner is None:
        return signals
    return replace(signals, sketches=preconditioner.apply(signals.sketches))


def influence(queries: Signals, pool: Signals) -> np.ndarray:
    """Exact influence by sketches: the cosines (Q, P) float32 of queries' and pool's sketches.

    The pool's are read a block at a time: they may be mapped from a file that is larger than memory.
    """
    left = _unit(queries.sketches)
    found = np.empty((len(queries), len(pool)), dtype=np.float32)
    for start in range(0, len(pool), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        found[:, some] = left @ _unit(pool.sketches[some]).T
    return found


def _rows_for(rows: int, sketch: SketchSpec, file: Path | None) -> np.ndarray:
    """Room for sketches (rows, D), in a file where one is named."""
    shape, dtype = (rows, sketch.width), np.dtype(sketch.dtype)
    # An empty file cannot be mapped.
    if file is None or not rows:
        return np.empty(shape, dtype)
    return np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)


def _examples(settings: PipelineSettings, side: str, wanted: pc.Expression, explored: bool) -> list[Example]:
    tables = [(sample.state(settings.root), f"sample/{side}")]
    if explored and side == "pool" and settings.explore.examples:
        tables.append((explore.state(settings.root), explore.EXPLORED))
    parts = [record.read(table, schemas.EXAMPLES, where=wanted) for record, table in tables]
    return from_table(pa.concat_tables(parts))


def _training_sketches(settings: PipelineSettings, side: str) -> np.ndarray:
    """The sketches (N, D) float32 of a side's training examples in their own length.

    Of the sample alone: what was explored beyond it is not what the corpus looks like.
    """
    schema = schemas.sketches(settings.sketch.width, settings.sketch.dtype)
    rows = sketch.state(settings.root).read(f"sketches/{side}", schema, where=pc.field("split") == "train")
    rows = rows.sort_by("content_hash")
    norms = rows["sketch_norm"].to_numpy()[:, None]
    return np.asarray(sketch_matrix(rows) * norms, dtype=np.float32)


def _unit(sketches: np.ndarray) -> np.ndarray:
    rows = sketches.astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
