"""The teacher's signals of one split: examples and their sketches, matched and in a fixed order."""

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from influcoder_ray.config import PipelineSettings
from influcoder_ray.examples import Example
from influcoder_ray.examples.example import from_table
from influcoder_ray.stages import sample, sketch
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import sketch_matrix


@dataclass(frozen=True)
class Signals:
    """Examples (N,) of one side and split with their unit-length sketches (N, D).

    `total` counts the examples of the whole split, of which these may be a part.
    """

    examples: list[Example]
    sketches: np.ndarray
    total: int

    def __len__(self) -> int:
        return len(self.examples)


def read_signals(settings: PipelineSettings, side: str, split: str, part: slice = slice(None)) -> Signals:
    """The sketched examples of one side and split, in order of content hash.

    Args:
        side: "pool" or "queries".
        split: "train", "validation" or "test".
        part: which of them, in that order; the others' sketches are never held in memory together.
    """
    table = f"sketches/{side}"
    schema = schemas.sketches(settings.sketch.width, settings.sketch.dtype)
    record = sketch.state(settings.root)
    in_split = pc.field("split") == split
    hashes = record.read(table, schema, ["content_hash", "split"], in_split)["content_hash"].to_pylist()
    mine = sorted(hashes)[part]
    wanted = pc.field("content_hash").isin(mine)
    sketches = record.read(table, schema, where=wanted).sort_by("content_hash")
    examples = sample.state(settings.root).read(f"sample/{side}", schemas.EXAMPLES, where=wanted)
    by_hash = {e.content_hash: e for e in from_table(examples)}
    return Signals([by_hash[h] for h in mine], sketch_matrix(sketches), len(hashes))


def influence(queries: Signals, pool: Signals) -> np.ndarray:
    """Exact influence by sketches: the cosines (Q, P) float32 of queries' and pool's sketches."""
    left, right = (_unit(side.sketches) for side in (queries, pool))
    return np.asarray(left @ right.T, dtype=np.float32)


def _unit(sketches: np.ndarray) -> np.ndarray:
    rows = sketches.astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
