"""Attribute: the top k of the corpus for each query, and the whole query set's influence, in one pass."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.attribution.distribution import percentile_of_rank
from influcoder_ray.attribution.topk import Ranking, merge_each
from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages import embed
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.tables import schemas
from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.fingerprint import Fingerprint, digest_of
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, Output, StageState
from influcoder_ray.tables.units import plan_units

ATTRIBUTIONS, GROUP, HISTOGRAM = "attributions", "group_influence", "_state/attribute/histogram"
_RANKINGS = "_state/attribute/rankings"
ROWS_PER_UNIT = 1 << 18


def state(root: Place) -> StageState:
    return StageState(root, "attribute", (ATTRIBUTIONS, GROUP, _RANKINGS, HISTOGRAM))


def plan(settings: PipelineSettings) -> StagePlan:
    embedded = embed.state(settings.root)
    fingerprint = Fingerprint(
        {
            "stage": "attribute",
            "inputs": {"embed": embedded.finished().digest},
            "attribute": settings.attribute.model_dump(mode="json") | {"top_k": settings.kept_per_query},
        }
    )
    units = plan_units(
        embedded.data_files(embed.CORPUS), rows_per_unit=ROWS_PER_UNIT, fingerprint=fingerprint.digest
    )
    queries = embedded.data_files(embed.QUERIES)
    record = state(settings.root)
    scanned = [u.unit_id for u in units]
    closing = f"attributions-{digest_of(scanned)[:16]}"

    def run(display: Display) -> Mapping[str, Manifest]:
        from influcoder_ray.stages.cluster import reserve
        from influcoder_ray.stages.units_on_ray import WorkPlan, run_units
        from influcoder_ray.stages.work.search import SearchTables, SearchWork

        reservation = reserve(settings.workers.attribute)
        arguments = {
            "queries": queries,
            "tables": SearchTables(GROUP, _RANKINGS, HISTOGRAM),
            "top_k": settings.kept_per_query,
            "unfamiliar_below": settings.attribute.unfamiliar_below,
            "threads": reservation.threads,
        }
        manifests = run_units(
            WorkPlan(record, units, SearchWork, arguments), fingerprint, reservation, display
        )
        rows = sum(m.rows_out for m in manifests.values())
        merged = _merge(record, queries, settings, rows)
        manifests[closing] = record.commit(closing, merged, 0.0)
        return manifests

    return StagePlan(record, fingerprint, (*scanned, closing), run)


def _merge(record: StageState, queries: Sequence[DataFile], settings: PipelineSettings, rows: int) -> Output:
    """The best of all units' rankings, with each one's place in the whole corpus."""
    from influcoder_ray.stages.work.search import query_rows

    found = query_rows(queries, ["example_id", "familiarity"])
    query_ids = found["example_id"].to_pylist()
    unfamiliar_queries = int((found["familiarity"].to_numpy() < settings.attribute.unfamiliar_below).sum())
    best = merge_each(_rankings(record, len(query_ids)), settings.kept_per_query)
    kept = best.scores.shape[1]
    sources, familiarity = _read_again(record, best)
    unfamiliar = familiarity < settings.attribute.unfamiliar_below
    cells: dict[str, Any] = {
        "query_id": np.repeat(np.array(query_ids, dtype=object), kept),
        "rank": np.tile(np.arange(1, kept + 1, dtype=np.int32), len(query_ids)),
        "example_id": best.ids.reshape(-1),
        "score": best.scores.reshape(-1),
        "percentile": np.tile(
            np.array([percentile_of_rank(r, rows) for r in range(1, kept + 1)], dtype=np.float32),
            len(query_ids),
        ),
        "source": sources,
        "familiarity": familiarity,
        "unfamiliar": unfamiliar,
    }
    return Output(
        {ATTRIBUTIONS: pa.table(cells, schema=schemas.ATTRIBUTIONS)},
        rows_in=0,
        rows_out=0,
        counters={
            "attributions": len(unfamiliar),
            "unfamiliar_attributions": int(unfamiliar.sum()),
            "queries": len(query_ids),
            "unfamiliar_queries": unfamiliar_queries,
        },
    )


def _rankings(record: StageState, queries: int) -> Iterator[Ranking]:
    """That of each unit, its tables read one after the other."""
    from influcoder_ray.stages.work.search import ranking_of

    examples = {f.path: m.rows_out for m in record.manifests().values() for f in m.files}
    for file in record.files(_RANKINGS):
        with (record.root / file.path).open() as stream:
            table = pq.ParquetFile(stream).read(columns=["score", "example_id"])
        yield ranking_of(table, queries, examples[file.path], file.path)


def _read_again(record: StageState, best: Ranking) -> tuple[np.ndarray, np.ndarray]:
    """The source and the familiarity of each place of a ranking, from the tables that it names."""
    shards, rows = best.shards.reshape(-1), best.rows.reshape(-1)
    sources, familiarity = np.empty(len(rows), object), np.empty(len(rows), np.float32)
    for shard in sorted(set(shards.tolist())):
        places = np.flatnonzero(shards == shard)
        with (record.root / shard).open() as stream:
            table = pq.ParquetFile(stream).read(columns=["source", "familiarity"])
        found = table.take(pa.array(rows[places]))
        sources[places], familiarity[places] = found["source"].to_numpy(), found["familiarity"].to_numpy()
    return sources, familiarity
