"""Embed: the unit vector of every corpus row, and of every query, by the distilled encoder."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.specs import EncoderSpec
from influcoder_ray.examples import ColumnSpec, Example
from influcoder_ray.examples.columns import Unusable, examples_from_cells
from influcoder_ray.examples.example import from_table
from influcoder_ray.stages import distill, sample
from influcoder_ray.stages.cluster import reserve
from influcoder_ray.stages.device import prepare_device
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.stages.progress import Display
from influcoder_ray.stages.units_on_ray import WorkPlan, run_units
from influcoder_ray.tables import schemas
from influcoder_ray.tables.cells import read_cells
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.models import local_model_folder
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, Output, StageState, quarantine_table
from influcoder_ray.tables.units import Unit, plan_units

CORPUS, QUERIES = "embeddings", "query_embeddings"


def state(root: Place) -> StageState:
    return StageState(root, "embed", (CORPUS, QUERIES))


def plan(settings: PipelineSettings) -> StagePlan:
    sampled, distilled = sample.state(settings.root), distill.state(settings.root)
    files = find_data_files(settings.corpus.path, setting="corpus.path")
    fingerprint = Fingerprint(
        {
            "stage": "embed",
            "inputs": {"sample": sampled.finished().digest, "distill": distilled.finished().digest},
            "corpus": sample.data_fields(settings.corpus, files),
            "encoder": settings.encoder.model_dump(mode="json", exclude={"path"}),
            "embed": settings.embed.model_dump(mode="json"),
        }
    )
    units = [
        unit
        for source, table in ((sampled.data_files(sample.QUERIES), QUERIES), (files, CORPUS))
        for unit in plan_units(
            source,
            rows_per_unit=settings.embed.rows_per_unit,
            fingerprint=fingerprint.digest,
            table=table,
        )
    ]
    record = state(settings.root)

    def run(display: Display) -> Mapping[str, Manifest]:
        reservation = reserve(settings.workers.embed)
        folder = settings.root / distill.ENCODER
        arguments = {
            "encoder": settings.encoder.model_copy(update={"path": folder.uri}),
            "columns": settings.corpus.columns,
            "threads": reservation.threads,
        }
        return run_units(WorkPlan(record, units, EmbedWork, arguments), fingerprint, reservation, display)

    return StagePlan(record, fingerprint, tuple(u.unit_id for u in units), run)


def load_encoder(spec: EncoderSpec, *, threads: int) -> Encoder:
    """The encoder of a folder, wherever that lies, on this worker's device."""
    folder = local_model_folder(spec.path, setting="encoder.path")
    return Encoder.load(spec.model_copy(update={"path": folder}), prepare_device(threads))


class EmbedWork:
    """Holds the encoder and embeds units of the corpus, and of the sampled queries."""

    def __init__(self, encoder: EncoderSpec, columns: ColumnSpec, threads: int) -> None:
        self._encoder = load_encoder(encoder, threads=threads)
        self._columns = columns

    def read(self, unit: Unit) -> Any:
        if unit.table == CORPUS:
            return read_cells(unit, self._columns.names)
        with unit.place.open() as stream:
            return pq.ParquetFile(stream).read_row_groups(list(unit.row_groups or ()))

    def process(self, unit: Unit, rows: Any, report: Callable[[int], None]) -> Output:
        examples: list[Example]
        unusable: list[Unusable]
        if unit.table == CORPUS:
            examples, unusable = examples_from_cells(
                rows, self._columns, relative=unit.relative, first_row=unit.first_row
            )
        else:
            examples, unusable = from_table(rows), []
        vectors, cut = self._encoder.embed(examples, report)
        good = np.flatnonzero(np.isfinite(vectors).all(1)).tolist()
        refused = sorted(set(range(len(examples))) - set(good))
        unusable += [
            Unusable(examples[i].example_id, examples[i].source, "vector is not finite") for i in refused
        ]
        flat = vectors[good].astype(np.float16).reshape(-1)
        dimensions = self._encoder.dimensions
        table = pa.table(
            {
                "example_id": [examples[i].example_id for i in good],
                "source": [examples[i].source for i in good],
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(flat), dimensions),
            },
            schema=schemas.embeddings(dimensions),
        )
        return Output(
            {unit.table: table},
            rows_in=len(examples) + len(unusable) - len(refused),
            rows_out=len(good),
            quarantine=quarantine_table("embed", [(u.example_id, u.source, u.reason) for u in unusable]),
            counters={f"truncated_{unit.table}": sum(cut)},
        )


def vector_matrix(table: pa.Table) -> np.ndarray:
    """The vectors (N, d) float16 of a table of embeddings."""
    dimensions = table.schema.field("embedding").type.list_size
    chunks = table.column("embedding").chunks
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions) for chunk in chunks]
    return np.concatenate(parts) if parts else np.zeros((0, dimensions), np.float16)
