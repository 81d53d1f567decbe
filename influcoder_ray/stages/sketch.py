"""Sketch: every sampled example's loss gradient, by the teacher, as a CountSketch."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.example import from_table
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.adapter import find_targets
from influcoder_ray.gradients.loading import load_config, load_tokenizer
from influcoder_ray.gradients.sketch import SCHEME, CountSketch
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec, SketchSpec
from influcoder_ray.gradients.teacher import Sketches, Teacher
from influcoder_ray.stages import sample
from influcoder_ray.stages.cluster import reserve
from influcoder_ray.stages.device import prepare_device
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.stages.progress import Display
from influcoder_ray.stages.units_on_ray import WorkPlan, run_units
from influcoder_ray.tables import schemas
from influcoder_ray.tables.fingerprint import Fingerprint, model_identity
from influcoder_ray.tables.models import local_model_folder
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, Output, StageState, quarantine_table
from influcoder_ray.tables.units import Unit, plan_units

POOL, QUERIES = "sketches/pool", "sketches/queries"


def state(root: Place) -> StageState:
    return StageState(root, "sketch", (POOL, QUERIES))


def check(settings: PipelineSettings) -> None:
    """Refuse a model that is none, or an adapter that fits none of its modules; reads no weights.

    Raises:
        UserError: the first of these.
    """
    model, adapter = local_specs(settings)
    find_targets(load_config(model), adapter)
    tokenizer = load_tokenizer(model)
    if model.template == "chat" and not tokenizer.chat_template:
        raise UserError(f"model.template: {model.path} has no chat template; use plain or auto")


def plan(settings: PipelineSettings) -> StagePlan:
    model, adapter = local_specs(settings)
    sampled = sample.state(settings.root)
    fingerprint = Fingerprint(
        {
            "stage": "sketch",
            "scheme": SCHEME,
            "seed": settings.seed,
            "inputs": {"sample": sampled.finished().digest},
            "model": model.model_dump(mode="json", exclude={"path"})
            | {"files": model_identity(Place(model.path))},
            "adapter": adapter.model_dump(mode="json", exclude={"path"})
            | {
                "files": model_identity(Place(adapter.path), marker="adapter_config.json")
                if adapter.path
                else None
            },
            "sketch": settings.sketch.model_dump(mode="json"),
        }
    )
    units = [
        unit
        for source, table in ((sample.QUERIES, QUERIES), (sample.POOL, POOL))
        for unit in plan_units(
            sampled.data_files(source),
            rows_per_unit=settings.sketch.rows_per_unit,
            fingerprint=fingerprint.digest,
            table=table,
        )
    ]
    record = state(settings.root)

    def run(display: Display) -> Mapping[str, Manifest]:
        reservation = reserve(settings.workers.sketch)
        arguments = {
            "model": settings.model,
            "adapter": settings.adapter,
            "sketch": SketchSpec(width=settings.sketch.width, dtype=settings.sketch.dtype),
            "seed": settings.seed,
            "threads": reservation.threads,
        }
        return run_units(
            WorkPlan(record, units, SketchWork, arguments), fingerprint, reservation, display, "examples"
        )

    return StagePlan(record, fingerprint, tuple(u.unit_id for u in units), run)


def local_specs(settings: PipelineSettings) -> tuple[ModelSpec, AdapterSpec]:
    """The model's and the adapter's specs with folders on this machine."""
    return _local(settings.model, settings.adapter)


def load_teacher(model: ModelSpec, adapter: AdapterSpec, *, seed: int, threads: int) -> Teacher:
    """The teacher on this worker's device."""
    model, adapter = _local(model, adapter)
    return Teacher.load(model, adapter, seed=seed, device=prepare_device(threads))


class SketchWork:
    """Holds the teacher and sketches units of the sample."""

    def __init__(
        self, model: ModelSpec, adapter: AdapterSpec, sketch: SketchSpec, seed: int, threads: int
    ) -> None:
        self._teacher = load_teacher(model, adapter, seed=seed, threads=threads)
        self._sketch = CountSketch(sketch.width, seed)
        self._schema = schemas.sketches(sketch.width, sketch.dtype)
        self._dtype = np.dtype(sketch.dtype)

    def read(self, unit: Unit) -> pa.Table:
        with unit.place.open() as stream:
            return pq.ParquetFile(stream).read_row_groups(list(unit.row_groups or ()))

    def process(self, unit: Unit, rows: pa.Table, report: Callable[[int], None]) -> Output:
        examples = from_table(rows)
        tokens = self._teacher.tokens(examples)
        with_loss = [i for i, t in enumerate(tokens) if t.labelled > 0]
        sketches = self._teacher.sketch([tokens[i] for i in with_loss], self._sketch, report=report)
        refused = dict.fromkeys(range(len(tokens)), "no token to predict")
        refused.update(zip(with_loss, _faults(sketches), strict=True))
        good = [i for i in range(len(tokens)) if not refused[i]]
        places = {row: place for place, row in enumerate(with_loss)}
        table = self._table(rows, examples, tokens, sketches, good, places)
        return Output(
            {unit.table: table},
            rows_in=len(examples),
            rows_out=len(good),
            quarantine=quarantine_table(
                "sketch",
                [(examples[i].example_id, examples[i].source, why) for i, why in refused.items() if why],
            ),
            counters={
                "tokens": sum(len(tokens[i].ids) for i in good),
                "truncated": sum(tokens[i].truncated for i in good),
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
        raw = sketches.sketches[kept]
        norms = np.linalg.norm(raw, axis=1)
        cells = np.ascontiguousarray((raw / norms[:, None]).astype(self._dtype))
        split = rows["split"].to_pylist()
        return pa.table(
            {
                "example_id": [examples[i].example_id for i in good],
                "content_hash": [examples[i].content_hash for i in good],
                "split": [split[i] for i in good],
                "sketch": [row.tobytes() for row in cells],
                "sketch_norm": norms.astype(np.float32),
                "gradient_norm": sketches.gradient_norms[kept],
                "loss": sketches.losses[kept],
                "tokens": [len(tokens[i].ids) for i in good],
                "labelled_tokens": [tokens[i].labelled for i in good],
                "truncated": [tokens[i].truncated for i in good],
            },
            schema=self._schema,
        )


def sketch_matrix(table: pa.Table) -> np.ndarray:
    """The unit-length sketches (N, D) of a table, in the type in which they are stored."""
    metadata = table.schema.metadata
    dtype, width = np.dtype(metadata[b"sketch_dtype"].decode()), int(metadata[b"sketch_width"])
    column = table.column("sketch").combine_chunks()
    cells = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [np.frombuffer(b"".join(cell.to_pylist()), dtype=dtype).reshape(-1, width) for cell in cells]
    return np.concatenate(parts) if parts else np.zeros((0, width), dtype=dtype)


def _faults(sketches: Sketches) -> list[str]:
    """Why each gradient (N,) cannot be used; empty where it can."""
    finite = np.isfinite(sketches.sketches).all(1) & np.isfinite(sketches.gradient_norms)
    return [
        "" if ok and norm > 0 else "gradient is zero" if ok else "gradient is not finite"
        for ok, norm in zip(finite, np.linalg.norm(sketches.sketches, axis=1), strict=True)
    ]


def _local(model: ModelSpec, adapter: AdapterSpec) -> tuple[ModelSpec, AdapterSpec]:
    model = model.model_copy(update={"path": local_model_folder(model.path, setting="model.path")})
    if adapter.path:
        folder = local_model_folder(adapter.path, setting="adapter.path")
        adapter = adapter.model_copy(update={"path": folder})
    return model, adapter
