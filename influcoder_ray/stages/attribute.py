"""Attribute: the top k of the corpus for each query, and the whole query set's influence, in one pass."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.ahead import in_order
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
from influcoder_ray.tables.state import CommittedFile, Manifest, Output, StageState
from influcoder_ray.tables.units import plan_units

ATTRIBUTIONS, GROUP, HISTOGRAM = "attributions", "group_influence", "_state/attribute/histogram"
TEXT_NEIGHBOURS = "text_neighbours"
_RANKINGS, _TEXT_RANKINGS = "_state/attribute/rankings", "_state/attribute/text_rankings"
ROWS_PER_UNIT = 1 << 18
# That read the units' rankings, which are small.
_THREADS = 16


def state(root: Place) -> StageState:
    tables = (ATTRIBUTIONS, GROUP, _RANKINGS, HISTOGRAM, TEXT_NEIGHBOURS, _TEXT_RANKINGS)
    return StageState(root, "attribute", tables)


def plan(settings: PipelineSettings) -> StagePlan:
    embedded = embed.state(settings.root)
    texts = settings.rerank.text_candidates
    fingerprint = Fingerprint(
        {
            "stage": "attribute",
            "inputs": {"embed": embedded.finished().digest},
            "attribute": settings.attribute.model_dump(mode="json") | {"top_k": settings.kept_per_query},
        }
        | ({"rerank": {"text_candidates": texts}} if texts else {})
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
        work: Callable[..., Any] = SearchWork
        arguments: dict[str, Any] = {
            "queries": queries,
            "tables": SearchTables(GROUP, _RANKINGS, HISTOGRAM),
            "top_k": settings.kept_per_query,
            "unfamiliar_below": settings.attribute.unfamiliar_below,
            "threads": reservation.threads,
        }
        if texts:
            from influcoder_ray.stages.work.text_search import TextSearchWork

            work = TextSearchWork
            arguments |= {"text_rankings": _TEXT_RANKINGS, "text_candidates": texts}
        manifests = run_units(WorkPlan(record, units, work, arguments), fingerprint, reservation, display)
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
    below = settings.attribute.unfamiliar_below
    best = _best(record, _RANKINGS, query_ids, settings.kept_per_query, below)
    kept = len(best["rank"]) // len(query_ids)
    places = np.array([percentile_of_rank(r, rows) for r in range(1, kept + 1)], dtype=np.float32)
    best["percentile"] = np.tile(places, len(query_ids))
    tables = {ATTRIBUTIONS: pa.table(best, schema=schemas.ATTRIBUTIONS)}
    if settings.rerank.text_candidates:
        near = _best(record, _TEXT_RANKINGS, query_ids, settings.rerank.text_candidates, below)
        tables[TEXT_NEIGHBOURS] = pa.table(near, schema=schemas.TEXT_NEIGHBOURS)
    return Output(
        tables,
        rows_in=0,
        rows_out=0,
        counters={
            "attributions": len(best["rank"]),
            "unfamiliar_attributions": int(best["unfamiliar"].sum()),
            "queries": len(query_ids),
            "unfamiliar_queries": int((found["familiarity"].to_numpy() < below).sum()),
        },
    )


def _best(
    record: StageState, table: str, query_ids: Sequence[str], most: int, unfamiliar_below: float
) -> dict[str, Any]:
    """The best of all units' rankings in a table, query by query, as columns but for the percentile."""
    best = merge_each(_rankings(record, table, len(query_ids)), most)
    kept = best.scores.shape[1]
    sources, familiarity = _read_again(record, best)
    return {
        "query_id": np.repeat(np.array(query_ids, dtype=object), kept),
        "rank": np.tile(np.arange(1, kept + 1, dtype=np.int32), len(query_ids)),
        "example_id": best.ids.reshape(-1),
        "score": best.scores.reshape(-1),
        "source": sources,
        "familiarity": familiarity,
        "unfamiliar": familiarity < unfamiliar_below,
    }


def _rankings(record: StageState, table: str, queries: int) -> Iterator[Ranking]:
    """That of each unit, in order, a few read ahead: most of the time is waiting for a store."""
    from influcoder_ray.stages.work.search import ranking_of

    manifests = record.manifests()
    found = [(f, m.rows_out) for _, m in sorted(manifests.items()) for f in m.files if f.table == table]

    def read(one: tuple[CommittedFile, int]) -> Ranking:
        file, examples = one
        with (record.root / file.path).open() as stream:
            rows = pq.ParquetFile(stream).read(columns=["score", "example_id"])
        return ranking_of(rows, queries, examples, file.path)

    yield from in_order(read, found, threads=_THREADS, ahead=_THREADS)


def _read_again(record: StageState, best: Ranking) -> tuple[np.ndarray, np.ndarray]:
    """The source and the familiarity of each place of a ranking, from the tables that it names."""
    shards, rows = best.shards.reshape(-1), best.rows.reshape(-1)
    sources, familiarity = np.empty(len(rows), object), np.empty(len(rows), np.float32)
    order = np.argsort(shards, kind="stable")
    names, firsts = np.unique(shards[order], return_index=True)

    def read(one: tuple[str, np.ndarray]) -> tuple[np.ndarray, pa.Table]:
        shard, places = one
        with (record.root / shard).open() as stream:
            table = pq.ParquetFile(stream).read(columns=["source", "familiarity"])
        return places, table.take(pa.array(rows[places]))

    of_shards = zip(names.tolist(), np.split(order, firsts[1:]), strict=True)
    for places, found in in_order(read, of_shards, threads=_THREADS, ahead=_THREADS):
        sources[places], familiarity[places] = found["source"].to_numpy(), found["familiarity"].to_numpy()
    return sources, familiarity
