"""Re-ranking: which candidates still need a gradient, and the order that the gradients give."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from influcoder_ray.attribution.reranking import exact_order, exact_scores
from influcoder_ray.config import PipelineSettings
from influcoder_ray.examples import Example
from influcoder_ray.examples.example import to_table
from influcoder_ray.stages import attribute, rerank, sketch
from influcoder_ray.stages.signals import fit_preconditioner
from influcoder_ray.stages.texts import corpus_examples
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import sketch_matrix
from influcoder_ray.tables.state import Manifest, Output, StageState

# Small row groups, so that units of any size can be cut from them.
_ROWS_PER_GROUP = 16


def gather(settings: PipelineSettings, record: StageState, unit_id: str) -> Manifest:
    """Write the content of every candidate, and the contents that have no sketch yet.

    A content counts once, however many queries and ids it stands under; what the sample holds has its
    sketch already. Candidates of queries that have no sketch are left out: nothing could be compared.
    """
    examples = corpus_examples(settings, set(_comparable(settings)["source"].to_pylist()))
    by_content: dict[str, Example] = {}
    for example in sorted(examples.values(), key=lambda e: e.example_id):
        by_content.setdefault(example.content_hash, example)
    in_sample = set(_sketched(settings, sketch.POOL, "content_hash"))
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


def order(settings: PipelineSettings, record: StageState, unit_id: str) -> Manifest:
    """Write the candidates of every query in the order of their exact influence."""
    best = _candidates(settings)
    scores = _exact(settings, record, best)
    queries = len(pc.unique(best["query_id"]))
    places = exact_order(scores.reshape(queries, -1))
    kept = places.shape[1]
    rows = best.take((places + kept * np.arange(queries)[:, None]).reshape(-1))
    exact = np.take_along_axis(scores.reshape(queries, -1), places, axis=1).reshape(-1)
    table = pa.table(
        {
            "query_id": rows["query_id"],
            "rank": np.tile(np.arange(1, kept + 1, dtype=np.int32), queries),
            "example_id": rows["example_id"],
            "score": pa.array(exact, mask=np.isnan(exact)),
            "encoder_rank": rows["rank"],
            "encoder_score": rows["score"],
            "source": rows["source"],
        },
        schema=schemas.RERANKED,
    )
    return record.commit(unit_id, Output({rerank.RERANKED: table}, rows_in=0, rows_out=0), 0.0)


def _exact(settings: PipelineSettings, record: StageState, best: pa.Table) -> np.ndarray:
    """Exact influence (M,) float32 of each row of candidates; NaN where one of the two has no sketch."""
    schema = schemas.sketches(settings.sketch.width, settings.sketch.dtype)
    queries = sketch.state(settings.root).read(sketch.QUERIES, schema)
    preconditioner = fit_preconditioner(settings)

    def features(sketches: pa.Table) -> np.ndarray:
        matrix = sketch_matrix(sketches)
        return matrix if preconditioner is None else preconditioner.apply(matrix)

    query_features = features(queries)
    row_of = {query_id: row for row, query_id in enumerate(queries["example_id"].to_pylist())}
    of_query = np.array([row_of.get(query_id, -1) for query_id in best["query_id"].to_pylist()])
    contents = record.read(rerank.CONTENTS, schemas.CONTENTS)
    content_of = dict(zip(*(contents[name].to_pylist() for name in schemas.CONTENTS.names), strict=True))
    places: dict[str, list[int]] = defaultdict(list)
    for place, example_id in enumerate(best["example_id"].to_pylist()):
        if of_query[place] >= 0:
            places[content_of[example_id]].append(place)
    scores = np.full(best.num_rows, np.nan, dtype=np.float32)
    wanted = pc.field("content_hash").isin(pa.array(list(places), pa.string()))
    for holder, table in ((sketch.state(settings.root), sketch.POOL), (record, rerank.SKETCHES)):
        for shard in _shards(holder, table, schema, wanted):
            found = [places[content] for content in shard["content_hash"].to_pylist()]
            pairs = np.concatenate(found)
            of_candidate = np.repeat(np.arange(len(found)), [len(them) for them in found])
            scores[pairs] = exact_scores(query_features, features(shard), of_query[pairs], of_candidate)
    return scores


def _shards(record: StageState, table: str, schema: pa.Schema, wanted: pc.Expression) -> Iterator[pa.Table]:
    """A table's files that hold wanted rows, one at a time: sketches of all candidates may be too many."""
    for file in record.files(table):
        with (record.root / file.path).open() as stream:
            rows = pq.ParquetFile(stream).read().cast(schema).filter(wanted)
        if rows.num_rows:
            yield rows


def _candidates(settings: PipelineSettings) -> pa.Table:
    """The rows of attributions that are to be re-ranked, query by query in order of rank."""
    within = pc.field("rank") <= settings.rerank.candidates
    return attribute.state(settings.root).read(attribute.ATTRIBUTIONS, schemas.ATTRIBUTIONS, where=within)


def _comparable(settings: PipelineSettings) -> pa.Table:
    """The candidates of queries that have a sketch."""
    queries = _sketched(settings, sketch.QUERIES, "example_id")
    return _candidates(settings).filter(pc.field("query_id").isin(pa.array(queries, pa.string())))


def _sketched(settings: PipelineSettings, table: str, column: str) -> list[str]:
    schema = schemas.sketches(settings.sketch.width, settings.sketch.dtype)
    values: list[str] = sketch.state(settings.root).read(table, schema, [column])[column].to_pylist()
    return values
