"""Attribute: the top k of the corpus for each query, and the whole query set's influence, in one pass."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.attribution.distribution import pair_histogram, percentile_of_rank
from influcoder_ray.attribution.group import group_scores
from influcoder_ray.attribution.topk import Ranking, merge, rank_shard
from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages import embed
from influcoder_ray.stages.cluster import reserve
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.stages.progress import Display
from influcoder_ray.stages.units_on_ray import WorkPlan, run_units
from influcoder_ray.tables import schemas
from influcoder_ray.tables.fingerprint import Fingerprint, digest_of
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, Output, StageState
from influcoder_ray.tables.units import Unit, plan_units

ATTRIBUTIONS, GROUP, HISTOGRAM = "attributions", "group_influence", "_state/attribute/histogram"
_RANKINGS = "_state/attribute/rankings"
_ROWS_PER_UNIT = 1 << 20

_RANKING = pa.schema(
    [
        pa.field("query", pa.int32()),
        pa.field("score", pa.float32()),
        pa.field("example_id", pa.string()),
        pa.field("source", pa.string()),
    ]
)
HISTOGRAM_SCHEMA = pa.schema([pa.field("count", pa.int64())])


def state(root: Place) -> StageState:
    return StageState(root, "attribute", (ATTRIBUTIONS, GROUP, _RANKINGS, HISTOGRAM))


def plan(settings: PipelineSettings) -> StagePlan:
    embedded = embed.state(settings.root)
    fingerprint = Fingerprint(
        {
            "stage": "attribute",
            "inputs": {"embed": embedded.finished().digest},
            "attribute": settings.attribute.model_dump(mode="json"),
        }
    )
    units = plan_units(
        embedded.data_files(embed.CORPUS), rows_per_unit=_ROWS_PER_UNIT, fingerprint=fingerprint.digest
    )
    record = state(settings.root)
    scanned = [u.unit_id for u in units]
    closing = f"attributions-{digest_of(scanned)[:16]}"

    def run(display: Display) -> Mapping[str, Manifest]:
        arguments = {"root": settings.root, "top_k": settings.attribute.top_k}
        manifests = run_units(
            WorkPlan(record, units, SearchWork, arguments),
            fingerprint,
            reserve(settings.workers.attribute),
            display,
        )
        rows = sum(m.rows_out for m in manifests.values())
        merged = _merge(record, embedded, settings.attribute.top_k, rows)
        manifests[closing] = record.commit(closing, merged, 0.0)
        return manifests

    return StagePlan(record, fingerprint, (*scanned, closing), run)


class SearchWork:
    """Holds the queries' vectors and ranks units of embeddings for each of them."""

    def __init__(self, root: Place, top_k: int) -> None:
        self._queries, _ = query_vectors(embed.state(root))
        self._top_k = top_k

    def read(self, unit: Unit) -> pa.Table:
        with unit.place.open() as stream:
            return pq.ParquetFile(stream).read_row_groups(list(unit.row_groups or ()))

    def process(self, unit: Unit, rows: pa.Table, report: Callable[[int], None]) -> Output:
        vectors = embed.vector_matrix(rows)
        ids = rows["example_id"].to_numpy()
        ranking = rank_shard(self._queries, vectors, ids, self._top_k)
        group = group_scores(self._queries, vectors)
        sources = rows["source"].to_numpy()
        return Output(
            {
                GROUP: pa.table(
                    {"example_id": ids, "source": sources, "score": group}, schema=schemas.GROUP_INFLUENCE
                ),
                _RANKINGS: _ranking_table(ranking, sources[ranking.rows]),
                HISTOGRAM: pa.table(
                    {"count": pair_histogram(self._queries, vectors).counts}, schema=HISTOGRAM_SCHEMA
                ),
            },
            rows_in=rows.num_rows,
            rows_out=rows.num_rows,
        )


def query_vectors(embedded: StageState) -> tuple[np.ndarray, list[str]]:
    """The queries' vectors (Q, d) float16 and their ids, in order of id."""
    parts = []
    for file in embedded.files(embed.QUERIES):
        with (embedded.root / file.path).open() as stream:
            parts.append(pq.ParquetFile(stream).read(columns=["example_id", "embedding"]))
    table = pa.concat_tables(parts).sort_by("example_id")
    return embed.vector_matrix(table), table["example_id"].to_pylist()


def _ranking_table(ranking: Ranking, sources: np.ndarray) -> pa.Table:
    queries, kept = ranking.scores.shape
    return pa.table(
        {
            "query": np.repeat(np.arange(queries, dtype=np.int32), kept),
            "score": ranking.scores.reshape(-1),
            "example_id": ranking.ids.reshape(-1),
            "source": sources.reshape(-1),
        },
        schema=_RANKING,
    )


def _merge(record: StageState, embedded: StageState, top_k: int, rows: int) -> Output:
    """The best of all units' rankings, with each one's place in the whole corpus."""
    _, query_ids = query_vectors(embedded)
    rankings, sources = [], {}
    examples = {f.path: m.rows_out for m in record.manifests().values() for f in m.files}
    for file in record.files(_RANKINGS):
        with (record.root / file.path).open() as stream:
            table = pq.ParquetFile(stream).read()
        kept = table.num_rows // len(query_ids)
        shape = (len(query_ids), kept)
        positions = np.arange(table.num_rows).reshape(shape)
        sources[file.path] = table["source"].to_numpy()
        rankings.append(
            Ranking(
                scores=table["score"].to_numpy().reshape(shape),
                ids=table["example_id"].to_numpy().reshape(shape),
                shards=np.full(shape, file.path, dtype=object),
                rows=positions,
                examples=examples[file.path],
            )
        )
    best = merge(rankings, top_k)
    kept = best.scores.shape[1]
    cells: dict[str, Any] = {
        "query_id": np.repeat(np.array(query_ids, dtype=object), kept),
        "rank": np.tile(np.arange(1, kept + 1, dtype=np.int32), len(query_ids)),
        "example_id": best.ids.reshape(-1),
        "score": best.scores.reshape(-1),
        "percentile": np.tile(
            np.array([percentile_of_rank(r, rows) for r in range(1, kept + 1)], dtype=np.float32),
            len(query_ids),
        ),
        "source": [
            sources[shard][row]
            for shard, row in zip(best.shards.reshape(-1), best.rows.reshape(-1), strict=True)
        ],
    }
    return Output({ATTRIBUTIONS: pa.table(cells, schema=schemas.ATTRIBUTIONS)}, rows_in=0, rows_out=0)
