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
    """Examples (N,) of one side and split with their unit-length sketches (N, D)."""

    examples: list[Example]
    sketches: np.ndarray

    def __len__(self) -> int:
        return len(self.examples)


def read_signals(settings: PipelineSettings, side: str, split: str) -> Signals:
    """The sketched examples of one side and split, in order of content hash.

    Args:
        side: "pool" or "queries".
        split: "train", "validation" or "test".
    """
    schema = schemas.sketches(settings.sketch.width, settings.sketch.dtype)
    sketches = sketch.state(settings.root).read(f"sketches/{side}", schema)
    sketches = sketches.filter(pc.equal(sketches["split"], split)).sort_by("content_hash")
    examples = sample.state(settings.root).read(f"sample/{side}", schemas.EXAMPLES)
    by_hash = {e.content_hash: e for e in from_table(examples)}
    return Signals([by_hash[h] for h in sketches["content_hash"].to_pylist()], sketch_matrix(sketches))


def influence(queries: Signals, pool: Signals) -> np.ndarray:
    """Exact influence by sketches: the cosines (Q, P) float32 of queries' and pool's sketches."""
    left, right = (_unit(side.sketches) for side in (queries, pool))
    return np.asarray(left @ right.T, dtype=np.float32)


def _unit(sketches: np.ndarray) -> np.ndarray:
    rows = sketches.astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
