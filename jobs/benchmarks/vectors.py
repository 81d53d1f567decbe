"""Made-up embeddings as the embed stage writes them: clustered unit vectors, the same from one seed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from influcoder_ray.tables import schemas
from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import parquet_bytes

_CLUSTERS = 256
# Rows of a cluster have a cosine of about .6 with each other, and next to none with those of another.
_SPREAD = 0.8
_ROWS_PER_GROUP = 4096
_THREADS = 2


@dataclass(frozen=True)
class VectorsSpec:
    """Which vectors are made up; `rows_per_file` is how many a unit of embed leaves in its file."""

    rows: int
    dimensions: int
    queries: int
    rows_per_file: int
    seed: int = 0

    @property
    def name(self) -> str:
        """Of a folder that holds these vectors and no others."""
        return f"{self.rows}x{self.dimensions}-{self.rows_per_file}-seed-{self.seed}"


def corpus_files(spec: VectorsSpec, folder: Path) -> list[DataFile]:
    """The corpus's files, in order; those that are not there yet are written, each whole."""
    place = Place(str(folder / spec.name))
    starts = range(0, spec.rows, spec.rows_per_file)
    sizes = [min(spec.rows_per_file, spec.rows - start) for start in starts]

    def file(number: int) -> DataFile:
        target = place / f"{number:06}.parquet"
        if not target.exists():
            generator = np.random.default_rng([spec.seed, number])
            target.write_whole(
                parquet_bytes(_table(_vectors(spec, sizes[number], generator), starts[number], "corpus"))
            )
        return _data_file(target, sizes[number])

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(file, range(len(sizes))))


def query_file(spec: VectorsSpec, folder: Path) -> DataFile:
    """The queries' file, written anew."""
    target = Place(str(folder / spec.name)) / "queries" / f"{spec.queries}.parquet"
    vectors = _vectors(spec, spec.queries, np.random.default_rng([spec.seed, 1 << 32]))
    target.write_whole(parquet_bytes(_table(vectors, 0, "queries")))
    return _data_file(target, spec.queries)


def _vectors(
    spec: VectorsSpec, rows: int, generator: np.random.Generator
) -> Iterator[npt.NDArray[np.float16]]:
    centres = np.random.default_rng([spec.seed, 1 << 33]).standard_normal((_CLUSTERS, spec.dimensions))
    centres = centres.astype(np.float32)
    for start in range(0, rows, _ROWS_PER_GROUP):
        some = min(_ROWS_PER_GROUP, rows - start)
        block = generator.standard_normal((some, spec.dimensions), dtype=np.float32)
        block *= _SPREAD
        block += centres[generator.integers(_CLUSTERS, size=some)]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        yield block.astype(np.float16)


def _table(blocks: Iterator[npt.NDArray[np.float16]], first: int, name: str) -> pa.Table:
    tables = []
    for block in blocks:
        rows, dimensions = block.shape
        tables.append(
            pa.table(
                {
                    "example_id": [f"doc-{first + row:012}" for row in range(rows)],
                    "source": [f"{name}.parquet:{first + row}" for row in range(rows)],
                    "embedding": pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), dimensions),
                    "familiarity": np.full(rows, 50, np.float32),
                },
                schema=schemas.embeddings(dimensions),
            )
        )
        first += rows
    return pa.concat_tables(tables)


def _data_file(place: Place, rows: int) -> DataFile:
    groups = tuple(min(_ROWS_PER_GROUP, rows - start) for start in range(0, rows, _ROWS_PER_GROUP))
    return DataFile(place, place.name, place.name, groups, ())
