"""Re-ranking: which candidates still need a gradient, and the order that the gradients give."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from influcoder_ray.attribution.topk import Ranking, merge, rank_shard
from influcoder_ray.config import PipelineSettings
from influcoder_ray.examples import Example
from influcoder_ray.examples.example import to_table
from influcoder_ray.stages import attribute, rerank, sketch
from influcoder_ray.stages.signals import SPLITS, contents_of, fit_preconditioner, sketch_tables
from influcoder_ray.stages.texts import corpus_examples
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import sketch_matrix
from influcoder_ray.tables.state import Manifest, Output, StageState

# Small row groups, so that units of any size can be cut from them.
_ROWS_PER_GROUP = 16


def gather(settings: PipelineSettings, record: StageState, unit_id: str, threads: int) -> Manifest:
    """Write the content of every candidate, and the contents that have no sketch yet.

    A content counts once, however many queries and ids it stands under; what the sample holds has its
    sketch already. Candidates of queries that have no sketch are left out: nothing could be compared.
    """
    examples = corpus_examples(settings, {row["source"] for row in _comparable(settings)})
    by_content: dict[str, Example] = {}
    for example in sorted(examples.values(), key=lambda e: e.example_id):
        by_content.setdefault(example.content_hash, example)
    in_sample = {content for split in SPLITS for content in contents_of(settings, "pool", split)}
    unsketched = [by_content[content] for content in sorted(by_content) if content not in in_sample]
    ids = sorted(examples.values(), key=lambda e: e.example_id)
    contents = pa.table(
        {"example_id": [e.example_id for e in ids], "content_hash": [e.content_hash for e in ids]},
        schema=schemas.CONTENTS,
    )
    held = len(by_content) - len(unsketched)
    tables = {rerank.CONTENTS: contents, rerank.UNSKETCHED: to_table(unsketched, [""] * len(unsketched))}
    counters = {"contents": len(by_content), "contents_in_sample": held, "gradient_evaluations": 0}
    # The sample's count as rows in and out, or one bad row among few new ones would be a large share.
    output = Output(tables, held, held, counters=counters, rows_per_group=_ROWS_PER_GROUP)
    return record.commit(unit_id, output, 0.0)


def order(settings: PipelineSettings, record: StageState, unit_id: str, threads: int) -> Manifest:
    """Write the best of all candidates for every query, in the order of their exact influence.

    A gradient serves every query, so each query ranks the candidates of all. It keeps as many as it had:
    its own without gradient stand behind where there is room, and a query without gradient keeps its own.
    """
    of_query: dict[str, list[dict[str, Any]]] = defaultdict(list)
    sources: dict[str, str] = {}
    for row in _candidates(settings):
        of_query[row["query_id"]].append(row)
        sources[row["example_id"]] = row["source"]
    exact = _exact(settings, record, most=max(len(own) for own in of_query.values()))
    rows: list[dict[str, Any]] = []
    for query_id, own in of_query.items():
        found = {row["example_id"]: row for row in own}
        scores = exact.get(query_id, {})
        without = [row["example_id"] for row in own if row["example_id"] not in scores]
        for rank, example_id in enumerate([*scores, *without][: len(own)], 1):
            held = found.get(example_id, {})
            rows.append(
                {
                    "query_id": query_id,
                    "rank": rank,
                    "example_id": example_id,
                    "score": scores.get(example_id),
                    "encoder_rank": held.get("rank"),
                    "encoder_score": held.get("score"),
                    "source": sources[example_id],
                }
            )
    table = pa.Table.from_pylist(rows, schema=schemas.RERANKED)
    return record.commit(unit_id, Output({rerank.RERANKED: table}, rows_in=0, rows_out=0), 0.0)


def _exact(settings: PipelineSettings, record: StageState, *, most: int) -> Mapping[str, Mapping[str, float]]:
    """The highest exact influences of each query that has a sketch, best first, by example id.

    Args:
        most: how many to keep for each query.
    """
    schema = schemas.sketches(settings.sketch.width, settings.sketch.dtype)
    comparable = {row["query_id"] for row in _comparable(settings)}
    asked = pc.field("example_id").isin(pa.array(sorted(comparable), pa.string()))
    queries = sketch.state(settings.root).read(sketch.QUERIES, schema, where=asked)
    preconditioner = fit_preconditioner(settings)

    def features(sketches: pa.Table) -> np.ndarray:
        matrix = sketch_matrix(sketches)
        return matrix if preconditioner is None else preconditioner.apply(matrix)

    query_features = features(queries)
    contents = record.read(rerank.CONTENTS, schemas.CONTENTS)
    ids_of: dict[str, list[str]] = defaultdict(list)
    for example_id, content in zip(
        *(contents[name].to_pylist() for name in ("example_id", "content_hash")), strict=True
    ):
        ids_of[content].append(example_id)
    wanted = pc.field("content_hash").isin(pa.array(list(ids_of), pa.string()))
    rankings: list[Ranking] = []
    for holder, table in (*sketch_tables(settings, "pool"), (record, rerank.SKETCHES)):
        # A file at a time: sketches of all candidates may be too many to be held.
        for shard in holder.read_each(table, schema, where=wanted):
            if not shard.num_rows:
                continue
            ids = [ids_of[content] for content in shard["content_hash"].to_pylist()]
            rows = np.repeat(np.arange(len(ids)), [len(them) for them in ids])
            names = [name for them in ids for name in them]
            rankings.append(rank_shard(query_features, features(shard)[rows], names, most))
    if not rankings:
        return {}
    ranking = merge(rankings, most)
    return {
        query_id: dict(zip(ids.tolist(), scores.tolist(), strict=True))
        for query_id, ids, scores in zip(
            queries["example_id"].to_pylist(), ranking.ids, ranking.scores, strict=True
        )
    }


def _candidates(settings: PipelineSettings) -> list[dict[str, Any]]:
    """What is to be re-ranked: {"query_id", "example_id", "source", "rank", "score"}, each query's in order.

    The encoder's best, then what is similar in text alone, with neither the encoder's rank nor its score.
    """
    found = _within(settings, attribute.ATTRIBUTIONS, schemas.ATTRIBUTIONS, settings.rerank.candidates)
    own = {(row["query_id"], row["example_id"]) for row in found}
    near = _within(
        settings, attribute.TEXT_NEIGHBOURS, schemas.TEXT_NEIGHBOURS, settings.rerank.text_candidates
    )
    unranked = {"rank": None, "score": None}
    return [*found, *(r | unranked for r in near if (r["query_id"], r["example_id"]) not in own)]


def _within(settings: PipelineSettings, table: str, schema: pa.Schema, most: int) -> list[dict[str, Any]]:
    """The `most` best of each query in a table of the search, in order of rank."""
    if not most:
        return []
    columns = ["query_id", "example_id", "source", "rank", "score"]
    read = attribute.state(settings.root).read
    rows: list[dict[str, Any]] = read(table, schema, [*columns], pc.field("rank") <= most).to_pylist()
    return rows


def _comparable(settings: PipelineSettings) -> list[dict[str, Any]]:
    """The candidates of queries that have a sketch."""
    schema = schemas.sketches(settings.sketch.width, settings.sketch.dtype)
    queries = sketch.state(settings.root).read(sketch.QUERIES, schema, ["example_id"])["example_id"]
    known = set(queries.to_pylist())
    return [row for row in _candidates(settings) if row["query_id"] in known]
