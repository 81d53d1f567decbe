"""Runs whose output folder holds embeddings and nothing else."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from influcoder_ray.config import PipelineSettings, settings_from
from influcoder_ray.stages import embed
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import vector_column
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.state import Output


def embedded(
    folder: Path,
    shards: Sequence[np.ndarray],
    *,
    ids: Sequence[str] | None = None,
    queries: np.ndarray | None = None,
    kind: str = "float16",
    seen: str = "embed",
) -> PipelineSettings:
    """Settings of a run with the vectors (n, d) of each shard, and those of queries where there are any.

    Args:
        ids: of the corpus; "embeddings-<row>" if None. The source is "embeddings.parquet:<row>", the
            familiarity the row's last two digits.
        kind: how the corpus's vectors are kept.
        seen: what the fingerprint says, so that two runs may differ.
    """
    columns = {"text": "text"}
    settings = settings_from(
        {
            "output": str(folder / "out"),
            "corpus": {"path": str(folder / "corpus.parquet"), "columns": columns},
            "queries": {"path": str(folder / "queries.parquet"), "columns": columns},
            "model": {"path": "-"},
            "encoder": {"path": "-"},
        },
        source="test",
    )
    record = embed.state(settings.root)
    record.begin(Fingerprint({"stage": seen}))

    def commit(table: str, vectors: np.ndarray, unit: int, first: int, kind: str) -> None:
        column, steps = vector_column(vectors, kind)
        rows = range(first, first + len(vectors))
        cells = {
            "example_id": [f"{table}-{row}" if ids is None else ids[row] for row in rows],
            "source": [f"{table}.parquet:{row}" for row in rows],
            "embedding": column,
            "familiarity": [float(row % 100) for row in rows],
        }
        schema = schemas.embeddings(vectors.shape[1], kind, steps)
        output = Output({table: pa.table(cells, schema=schema)}, len(rows), len(rows))
        record.commit(f"{table}-{unit:06d}", output, 0.0)

    first = 0
    for unit, vectors in enumerate(shards):
        commit(embed.CORPUS, vectors, unit, first, kind)
        first += len(vectors)
    if queries is not None:
        ids = None
        commit(embed.QUERIES, queries, 0, 0, "float16")
    record.finish(record.manifests(), {})
    return settings
