"""Gradients that are paid for once: sketches by content, kept in a work folder from call to call.

What decides a gradient is the folder's fingerprint, and its key is the text to the letter; so a sketch that
is found is the one that would be computed. Some rows are written at a time: a call that is cut off loses
those in hand.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch

from influcoder_ray.examples import Example
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec, SketchSpec, scheme
from influcoder_ray.gradients.teacher import Teacher
from influcoder_ray.tables.arrays import sketch_matrix
from influcoder_ray.tables.fingerprint import Fingerprint, digest_of, model_identity
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Output, StageState

_TABLE = "sketches"
_ROWS_PER_UNIT = 128


@dataclass(frozen=True)
class Gradients:
    """Sketched gradients of N examples.

    Attributes:
        sketches: (N, D) of unit length; zeros where there is a fault.
        norms: (N,) float32, their lengths before.
        faults: (N,) why an example has no gradient, or empty.
    """

    sketches: np.ndarray
    norms: np.ndarray
    faults: list[str]

    def taken(self, rows: Sequence[int]) -> "Gradients":
        chosen = list(rows)
        return Gradients(self.sketches[chosen], self.norms[chosen], [self.faults[row] for row in chosen])


class GradientStore:
    """Gradients of one teacher, in a folder of their own below the work folder.

    Args:
        adam: sketch the steps that Adam would take in the gradients' place; the adapter then has its state.
    """

    def __init__(
        self,
        work: Place,
        model: ModelSpec,
        adapter: AdapterSpec,
        sketch: SketchSpec,
        *,
        seed: int,
        device: torch.device,
        adam: bool = False,
    ) -> None:
        self._model, self._adapter, self._sketch = model, adapter, sketch
        self._seed, self._device, self._adam = seed, device, adam
        self.fingerprint = Fingerprint(
            {
                "scheme": scheme(model.dtype),
                "seed": seed,
                "signal": "adam" if adam else "gradient",
                "model": model.model_dump(mode="json", exclude={"path"})
                | {"files": model_identity(Place(model.path), "model.path")},
                "adapter": adapter.model_dump(mode="json", exclude={"path"})
                | {
                    "files": model_identity(Place(adapter.path), "adapter.path", marker="adapter_config.json")
                    if adapter.path
                    else None
                },
                "sketch": sketch.model_dump(mode="json"),
            }
        )
        root = work / f"gradients-{self.fingerprint.digest[:16]}"
        self._state = StageState(root, "gradients", (_TABLE,))
        self._schema = pa.schema(
            [
                pa.field("key", pa.string(), nullable=False),
                pa.field("sketch", pa.binary(sketch.width * np.dtype(sketch.dtype).itemsize), nullable=False),
                pa.field("norm", pa.float32(), nullable=False),
                pa.field("fault", pa.string(), nullable=False),
            ],
            metadata={"sketch_width": str(sketch.width), "sketch_dtype": sketch.dtype},
        )

    @property
    def seconds_per_gradient(self) -> float:
        """Of the units that the folder holds the median, as measured when each was computed.

        Not the mean: a call beside which the machine did other things would count as dear gradients.
        """
        return float(np.median([m.seconds / m.rows_out for m in self._state.manifests().values()]))

    def compute(self, examples: Sequence[Example], say: Callable[[str], None]) -> None:
        """Compute and keep the gradients that are not there yet."""
        held = set(self._state.read(_TABLE, self._schema, ["key"])["key"].to_pylist())
        missing = {key_of(e): e for e in examples if key_of(e) not in held}
        if not missing:
            return
        self._state.begin(self.fingerprint)
        # Loaded before the clock starts.
        teacher = self._teacher
        keys = list(missing)
        started = time.monotonic()
        for first in range(0, len(keys), _ROWS_PER_UNIT):
            part = keys[first : first + _ROWS_PER_UNIT]
            begun = time.monotonic()
            table = self._table(teacher, part, [missing[key] for key in part])
            unit = digest_of([self.fingerprint.digest, part])[:16]
            self._state.commit(unit, Output({_TABLE: table}, len(part), len(part)), time.monotonic() - begun)
            done = first + len(part)
            left = (time.monotonic() - started) / done * (len(keys) - done)
            say(f"gradients: {done:,} of {len(keys):,}, about {left / 60:.1f} minutes left")

    def read(self, examples: Sequence[Example]) -> Gradients:
        """The gradients of examples (N,), all of which have been computed."""
        place: dict[str, list[int]] = {}
        for row, example in enumerate(examples):
            place.setdefault(key_of(example), []).append(row)
        sketches = np.zeros((len(examples), self._sketch.width), np.dtype(self._sketch.dtype))
        norms = np.zeros(len(examples), np.float32)
        faults = ["not computed"] * len(examples)
        for shard in self._state.read_each(_TABLE, self._schema):
            found = sketch_matrix(shard)
            for at, (key, norm, fault) in enumerate(
                zip(*(shard[name].to_pylist() for name in ("key", "norm", "fault")), strict=True)
            ):
                for row in place.get(key, ()):
                    sketches[row], norms[row], faults[row] = found[at], norm, fault
        return Gradients(sketches, norms, faults)

    @cached_property
    def _teacher(self) -> Teacher:
        return Teacher.load(self._model, self._adapter, seed=self._seed, device=self._device)

    def _table(self, teacher: Teacher, keys: Sequence[str], examples: Sequence[Example]) -> pa.Table:
        tokens = teacher.tokens(examples)
        rows = [i for i, t in enumerate(tokens) if t.labelled > 0]
        found = teacher.sketch(
            [tokens[i] for i in rows],
            CountSketch(self._sketch.width, self._seed),
            direction=teacher.pool_direction if self._adam else None,
        )
        faults = [t.fault or "no token to predict" for t in tokens]
        norms = np.zeros(len(keys), np.float32)
        unit = np.zeros((len(keys), self._sketch.width), np.dtype(self._sketch.dtype))
        for at, i in enumerate(rows):
            faults[i] = found.faults[at]
            if not faults[i]:
                norms[i] = np.linalg.norm(found.sketches[at])
                unit[i] = found.sketches[at] / norms[i]
        cells = [row.tobytes() for row in unit]
        return pa.table(
            {"key": list(keys), "sketch": cells, "norm": norms, "fault": faults}, schema=self._schema
        )


def key_of(example: Example) -> str:
    """What an example's gradient is found by: its text to the letter, turns included."""
    turns = [f"{turn.role}\x1e{turn.content}" for turn in example.turns]
    return hashlib.sha256("\x1f".join([*turns, example.prompt, example.response]).encode()).hexdigest()[:32]
