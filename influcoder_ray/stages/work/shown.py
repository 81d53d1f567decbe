"""What the report shows of queries: which of them, and the best examples of each."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from influcoder_ray.attribution.distribution import percentile_of_rank
from influcoder_ray.config import PipelineSettings
from influcoder_ray.examples import Example
from influcoder_ray.examples.example import from_table
from influcoder_ray.stages import attribute, rerank, sample
from influcoder_ray.stages.parts import embedded_rows
from influcoder_ray.tables import schemas

_SPLITS = ("test", "validation", "train")


def ordered_queries(settings: PipelineSettings) -> list[tuple[Example, str]]:
    """All queries with their splits, those unseen in training first; the page shows the first of them."""
    table = sample.state(settings.root).read(sample.QUERIES, schemas.EXAMPLES)
    return sorted(
        zip(from_table(table), table["split"].to_pylist(), strict=True),
        key=lambda pair: _SPLITS.index(pair[1]),
    )


def best_by_encoder(
    settings: PipelineSettings, query_ids: Sequence[str], most: int | None = None
) -> list[dict[str, Any]]:
    """The first rows of each query's attributions, in order of rank.

    Args:
        most: how many of each query; as many as the report shows if None.
    """
    table = attribute.state(settings.root).read(attribute.ATTRIBUTIONS, schemas.ATTRIBUTIONS)
    shown = pc.less_equal(table["rank"], most or settings.report.examples_per_query)
    wanted = pc.is_in(table["query_id"], pa.array(query_ids))
    rows: list[dict[str, Any]] = table.filter(pc.and_(shown, wanted)).to_pylist()
    return rows


def in_exact_order(
    settings: PipelineSettings, encoder_best: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """As many rows of each query in exact order; behind those re-ranked the encoder's order goes on."""
    wanted = pc.field("query_id").isin([row["query_id"] for row in encoder_best if row["rank"] == 1])
    table = rerank.state(settings.root).read(rerank.RERANKED, schemas.RERANKED).filter(wanted)
    familiar = _familiarity_of(settings, table["example_id"].to_pylist())
    corpus_rows = embedded_rows(settings)
    exact: dict[str, list[dict[str, Any]]] = {}
    for row in table.sort_by([("query_id", "ascending"), ("rank", "ascending")]).to_pylist():
        place = row["encoder_rank"]
        known = {
            "score": math.nan if row["score"] is None else row["score"],
            "percentile": None if place is None else percentile_of_rank(place, corpus_rows),
        }
        exact.setdefault(row["query_id"], []).append(row | known | familiar[row["example_id"]])
    for row in encoder_best:
        above = exact[row["query_id"]]
        if row["example_id"] not in {it["example_id"] for it in above}:
            behind = {"score": math.nan, "encoder_rank": row["rank"], "rank": len(above) + 1}
            above.append({**row, **behind})
    return [row for rows in exact.values() for row in rows[: settings.report.examples_per_query]]


def _familiarity_of(settings: PipelineSettings, example_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`familiarity` and `unfamiliar` of examples that either search has kept for some query."""
    names = ["example_id", "familiarity", "unfamiliar"]
    wanted = pc.field("example_id").isin(pa.array(sorted(set(example_ids)), pa.string()))
    found = {}
    for name, schema in (
        (attribute.TEXT_NEIGHBOURS, schemas.TEXT_NEIGHBOURS),
        (attribute.ATTRIBUTIONS, schemas.ATTRIBUTIONS),
    ):
        table = attribute.state(settings.root).read(name, schema, names, wanted)
        found.update({row.pop("example_id"): row for row in table.to_pylist()})
    return found
