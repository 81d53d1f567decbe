"""Sketching: every example's loss gradient, by the teacher, as a CountSketch."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from influcoder_ray.examples import Example
from influcoder_ray.examples.example import from_table
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec, SketchSpec
from influcoder_ray.gradients.teacher import Sketches, Teacher
from influcoder_ray.stages.folders import at_hand
from influcoder_ray.stages.work.device import prepare_device
from influcoder_ray.tables import schemas
from influcoder_ray.tables.rows import read_rows
from influcoder_ray.tables.state import Output, quarantine_table
from influcoder_ray.tables.units import Unit


def load_teacher(model: ModelSpec, adapter: AdapterSpec, *, seed: int, threads: int) -> Teacher:
    """The teacher on this worker's device, its folders fetched to this machine."""
    return Teacher.load(at_hand(model), at_hand(adapter), seed=seed, device=prepare_device(threads))


def as_stored(sketches: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The lengths (N,) of sketches (N, D), and the same at length 1 in the type in which they are kept."""
    # In float32 the squares of a gradient that is all but zero are zero, as of what is learnt by heart.
    squares = np.einsum("nd,nd->n", sketches, sketches, dtype=np.float64)
    norms = np.sqrt(squares).astype(sketches.dtype)
    return norms, np.ascontiguousarray((sketches / norms[:, None]).astype(dtype))


class SketchWork:
    """Holds the teacher and sketches units of examples.

    Args:
        pool_table: the table whose units are examples of the corpus; those of others are queries.
        stage: whose quarantine takes the rows that cannot be sketched.
    """

    def __init__(
        self,
        model: ModelSpec,
        adapter: AdapterSpec,
        sketch: SketchSpec,
        seed: int,
        threads: int,
        pool_table: str,
        stage: str,
    ) -> None:
        self._pool_table = pool_table
        self._stage = stage
        self._teacher = load_teacher(model, adapter, seed=seed, threads=threads)
        self._sketch = CountSketch(sketch.width, seed)
        self._schema = schemas.sketches(sketch.width, sketch.dtype)
        self._dtype = np.dtype(sketch.dtype)

    def read(self, unit: Unit) -> pa.Table:
        return read_rows(unit)

    def process(self, unit: Unit, rows: pa.Table, report: Callable[[int], None]) -> Output:
        examples = from_table(rows)
        tokens = self._teacher.tokens(examples)
        with_loss = [i for i, t in enumerate(tokens) if t.labelled > 0]
        sketches = self._teacher.sketch(
            [tokens[i] for i in with_loss],
            self._sketch,
            direction=self._teacher.pool_direction if unit.table == self._pool_table else None,
            report=report,
        )
        refused = {i: t.fault or "no token to predict" for i, t in enumerate(tokens)}
        refused.update(zip(with_loss, sketches.faults, strict=True))
        good = [i for i in range(len(tokens)) if not refused[i]]
        places = {row: place for place, row in enumerate(with_loss)}
        table = self._table(rows, examples, tokens, sketches, good, places)
        return Output(
            {unit.table: table},
            rows_in=len(examples),
            rows_out=len(good),
            quarantine=quarantine_table(
                self._stage,
                [(examples[i].example_id, examples[i].source, why) for i, why in refused.items() if why],
            ),
            counters={
                "gradient_evaluations": len(with_loss),
                "tokens": sum(len(tokens[i].ids) for i in good),
                "truncated": sum(tokens[i].truncated for i in good),
                "positions": sketches.positions,
            },
        )

    def _table(
        self,
        rows: pa.Table,
        examples: Sequence[Example],
        tokens: Sequence[Tokens],
        sketches: Sketches,
        good: Sequence[int],
        places: Mapping[int, int],
    ) -> pa.Table:
        kept = [places[i] for i in good]
        norms, cells = as_stored(sketches.sketches[kept], self._dtype)
        split = rows["split"].to_pylist()
        return pa.table(
            {
                "example_id": [examples[i].example_id for i in good],
                "content_hash": [examples[i].content_hash for i in good],
                "split": [split[i] for i in good],
                "sketch": [row.tobytes() for row in cells],
                "sketch_norm": norms.astype(np.float32),
                "gradient_norm": sketches.gradient_norms[kept],
                "module_norms": list(sketches.module_norms[kept]),
                "loss": sketches.losses[kept],
                "tokens": [len(tokens[i].ids) for i in good],
                "labelled_tokens": [tokens[i].labelled for i in good],
                "truncated": [tokens[i].truncated for i in good],
            },
            schema=self._schema,
        )
