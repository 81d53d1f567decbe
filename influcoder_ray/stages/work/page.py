"""The page: what the report shows, gathered from the tables of the other stages."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from influcoder_ray import __version__
from influcoder_ray.ahead import in_order
from influcoder_ray.attribution.distribution import ScoreHistogram, percentile_of_rank
from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.specs import HISTORY
from influcoder_ray.examples import Example
from influcoder_ray.report.blocks import Section
from influcoder_ray.report.contents import (
    Attribution,
    EpochRow,
    QueryFamiliarity,
    QueryPage,
    ReportContents,
    Reranked,
    StageRow,
    Truncation,
    Unfamiliar,
)
from influcoder_ray.report.render import render_html
from influcoder_ray.report.sections import validation
from influcoder_ray.report.spans import Span
from influcoder_ray.report.validation import validation_section
from influcoder_ray.stages import (
    attribute,
    distill,
    embed,
    evaluate,
    explore,
    mark,
    rerank,
    sample,
    sketch,
    validate,
)
from influcoder_ray.stages.signals import read_examples
from influcoder_ray.stages.texts import corpus_examples
from influcoder_ray.stages.work.shown import best_by_encoder, in_exact_order, ordered_queries
from influcoder_ray.tables import schemas
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import CommittedFile, StageState

_GROUP_EXAMPLES = 10
_PARTS = ("prompt", "response")
# That read the search's tables, of which there are as many as units.
_THREADS = 16


def html(settings: PipelineSettings) -> str:
    """The report as a page.

    Raises:
        UserError: a stage before it is not done, or the corpus is not where it was.
    """
    return render_html(contents(settings), _further(settings))


def _further(settings: PipelineSettings) -> list[Section]:
    """Sections of what not every run has."""
    if validate.found(settings) is None:
        return []
    figures = json.loads((settings.root / validate.VALIDATION).read_bytes())
    return [validation.section(validation_section(figures))]


def contents(settings: PipelineSettings) -> ReportContents:
    root = settings.root
    evaluation = json.loads((root / evaluate.EVALUATION).read_bytes())
    history = json.loads((root / distill.ENCODER / HISTORY).read_bytes())
    reranked, marked = rerank.found(settings) is not None, mark.found(settings) is not None
    made = {
        "explore": settings.explore.examples > 0,
        "rerank": reranked,
        "validate": validate.found(settings) is not None,
        "mark": marked,
    }
    stages = {stage: module for stage, module in _STAGES.items() if made.get(stage, True)}
    totals = {stage: _totals(module.state(root)) for stage, module in stages.items()}
    pairs = evaluate.state(root).read(evaluate.PAIRS, schemas.EVALUATION_PAIRS)
    shape = (evaluation["queries"], evaluation["pool"])
    group = group_extremes(attribute.state(root), settings.attribute.unfamiliar_below)
    pages, unlisted = _chosen_queries(settings)
    shown = [query.example_id for query, _ in pages]
    encoder_best = best_by_encoder(settings, shown)
    best = in_exact_order(settings, encoder_best) if reranked else encoder_best
    spans = _spans(settings) if marked else {}
    standing = _query_familiarity(settings)
    texts = corpus_examples(settings, [row["source"] for row in (*best, *group[0], *group[1])])
    by_query: dict[str, list[Attribution]] = {}
    for row in best:
        own = {part: spans.get((row["query_id"], row["example_id"], part), ()) for part in _PARTS}
        shaded = replace(_attribution(row, texts), prompt_spans=own["prompt"], response_spans=own["response"])
        by_query.setdefault(row["query_id"], []).append(shaded)
    queries = tuple(
        QueryPage(
            query.example_id,
            split,
            query.prompt,
            query.response,
            tuple(by_query[query.example_id]),
            standing[query.example_id],
        )
        for query, split in pages
    )
    return ReportContents(
        title=settings.report.title,
        influcoder_version=__version__,
        settings=settings.model_dump(mode="json"),
        evaluation=evaluation,
        epochs=tuple(
            EpochRow(chosen=epoch["epoch"] == history["chosen_epoch"], **epoch) for epoch in history["epochs"]
        ),
        unfamiliar=_unfamiliar(settings, totals["attribute"]),
        predicted=pairs["encoder"].to_numpy().reshape(shape),
        exact=pairs["exact"].to_numpy().reshape(shape),
        score_histogram=_histogram(attribute.state(root)),
        best_scores=_best_scores(attribute.state(root)),
        queries=queries[: settings.report.queries],
        group=tuple(_attribution(row, texts) for row in group[0]),
        least=tuple(_attribution(row, texts) for row in group[1]),
        stages=tuple(_stage_row(stage, numbers) for stage, numbers in totals.items()),
        truncation=_truncation(settings, totals),
        quarantine_reasons=_quarantine_reasons(root, stages),
        corpus_rows=group[2],
        reranked=_reranked(rerank.state(root)) if reranked else None,
        listed=queries[settings.report.queries :],
        unlisted=unlisted,
        rows_left_out=int(totals["sample"].get("left_out", 0)),
    )


_STAGES: dict[str, Any] = {
    "sample": sample,
    "sketch": sketch,
    "explore": explore,
    "distill": distill,
    "embed": embed,
    "attribute": attribute,
    "rerank": rerank,
    "evaluate": evaluate,
    "validate": validate,
    "mark": mark,
}


def _totals(record: StageState) -> dict[str, float]:
    return record.totals() or {}


def _chosen_queries(settings: PipelineSettings) -> tuple[list[tuple[Example, str]], int]:
    """The queries of the page with their splits, and how many are not on it.

    The first `report.queries` are shown with their texts, the others have but a row for each example.
    """
    ordered = ordered_queries(settings)
    spec = settings.report
    room = max(spec.queries, spec.table_rows // min(spec.examples_per_query, settings.kept_per_query))
    return ordered[:room], max(len(ordered) - room, 0)


def _spans(settings: PipelineSettings) -> dict[tuple[str, str, str], tuple[Span, ...]]:
    """What the tokens of shown examples carry, by query, example and part of its text."""
    found: dict[tuple[str, str, str], list[Span]] = {}
    for row in mark.state(settings.root).read(mark.SHARES, schemas.TOKEN_SHARES).to_pylist():
        place = (row["query_id"], row["example_id"], row["part"])
        found.setdefault(place, []).append(Span(row["start"], row["end"], row["contribution"]))
    return {place: tuple(spans) for place, spans in found.items()}


def _reranked(record: StageState) -> Reranked:
    totals = _totals(record)
    held = record.fingerprint()
    asked = held.fields["rerank"] if held else {"candidates": 0}
    return Reranked(
        asked["candidates"],
        int(totals["contents"]),
        int(totals["gradient_evaluations"]),
        asked.get("text_candidates", 0),
    )


def _query_familiarity(settings: PipelineSettings) -> dict[str, QueryFamiliarity]:
    """Each query's own familiarity, and how many of the examples kept for it are unfamiliar."""
    table = attribute.state(settings.root).read(
        attribute.ATTRIBUTIONS, schemas.ATTRIBUTIONS, ["query_id", "unfamiliar"]
    )
    kept = table.group_by("query_id").aggregate([("unfamiliar", "count"), ("unfamiliar", "sum")])
    counts = {row["query_id"]: (row["unfamiliar_count"], row["unfamiliar_sum"]) for row in kept.to_pylist()}
    queries = embed.state(settings.root).read(
        embed.QUERIES, schemas.embeddings(1), ["example_id", "familiarity"]
    )
    return {
        row["example_id"]: QueryFamiliarity(
            row["familiarity"],
            row["familiarity"] < settings.attribute.unfamiliar_below,
            *counts[row["example_id"]],
        )
        for row in queries.to_pylist()
    }


def _unfamiliar(settings: PipelineSettings, totals: Mapping[str, float]) -> Unfamiliar:
    return Unfamiliar(
        below=settings.attribute.unfamiliar_below,
        rows=int(totals["unfamiliar_rows"]),
        queries=int(totals["unfamiliar_queries"]),
        all_queries=int(totals["queries"]),
        answers=int(totals["unfamiliar_attributions"]),
        all_answers=int(totals["attributions"]),
        held_out_pool=len(read_examples(settings, "pool", "validation")),
        held_out_queries=len(read_examples(settings, "queries", "validation")),
    )


def group_extremes(
    record: StageState, unfamiliar_below: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """The most and the least influential examples on the whole query set, and the corpus's rows.

    Of most shards the scores are all that is read: four bytes a row, of a few shards at once.
    """

    def read(file: CommittedFile, columns: list[str] | None = None) -> pa.Table:
        with (record.root / file.path).open() as stream:
            return pq.ParquetFile(stream).read(columns=columns)

    def scores_of(file: CommittedFile) -> tuple[CommittedFile, np.ndarray]:
        return file, read(file, ["score"])["score"].to_numpy()

    most = least = schemas.GROUP_INFLUENCE.empty_table()
    rows = 0
    for file, scores in in_order(scores_of, record.files(attribute.GROUP), threads=_THREADS, ahead=_THREADS):
        rows += len(scores)
        high = _may_be_first(scores, most["score"].to_numpy())
        low = _may_be_first(-scores, -least["score"].to_numpy())
        if not (high | low).any():
            continue
        shard = read(file).cast(schemas.GROUP_INFLUENCE)
        most = _first(pa.concat_tables([most, shard.filter(pa.array(high))]), "descending")
        least = _first(pa.concat_tables([least, shard.filter(pa.array(low))]), "ascending")
    top = [row | {"rank": rank} for rank, row in enumerate(most.to_pylist(), 1)]
    bottom = [row | {"rank": rows - i} for i, row in enumerate(least.to_pylist())]
    for row in (*top, *bottom):
        row["percentile"] = percentile_of_rank(row["rank"], rows)
        row["unfamiliar"] = row["familiarity"] < unfamiliar_below
    return top, bottom, rows


def _may_be_first(scores: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Which of a shard's scores (N,) reach those that are held, best first, and the best of the shard."""
    last = _GROUP_EXAMPLES - 1
    bars = [held[last]] if len(held) > last else []
    if len(scores) > last:
        bars.append(-np.partition(-scores, last)[last])
    return np.asarray(scores >= max(bars, default=-np.inf))


def _first(table: pa.Table, order: str) -> pa.Table:
    """The first rows from the top of the ranking, or from its end, where equal scores go by falling id."""
    by_id = "ascending" if order == "descending" else "descending"
    return table.sort_by([("score", order), ("example_id", by_id)])[:_GROUP_EXAMPLES]


def _attribution(row: Mapping[str, Any], texts: Mapping[str, Example]) -> Attribution:
    example = texts[row["source"]]
    return Attribution(
        row["rank"],
        row["example_id"],
        row["score"],
        row["percentile"],
        row["source"],
        example.prompt,
        example.response,
        row.get("encoder_rank"),
        row["familiarity"],
        row["unfamiliar"],
    )


def _histogram(record: StageState) -> tuple[np.ndarray, np.ndarray]:
    def read(file: CommittedFile) -> np.ndarray:
        with (record.root / file.path).open() as stream:
            counts: np.ndarray = pq.ParquetFile(stream).read()["count"].to_numpy()
        return counts.astype(np.int64)

    total = ScoreHistogram.of([])
    for counts in in_order(read, record.files(attribute.HISTOGRAM), threads=_THREADS, ahead=_THREADS):
        total = total + ScoreHistogram(counts)
    return total.counts, np.linspace(-1, 1, len(total.counts) + 1)


def _best_scores(record: StageState) -> tuple[float, ...]:
    """The highest score of each query, of all of which the histogram counts the scores."""
    columns, first = ["rank", "score"], pc.field("rank") == 1
    rows = record.read(attribute.ATTRIBUTIONS, schemas.ATTRIBUTIONS, columns, first)
    return tuple(rows["score"].to_pylist())


def _stage_row(stage: str, totals: Mapping[str, float]) -> StageRow:
    seconds = totals["wall_seconds"]
    busy = totals["compute_seconds"]
    # Of candidates that were in the sample nothing was computed.
    computed = totals["rows_out"] - totals.get("contents_in_sample", 0)
    tokens = totals.get("tokens")
    return StageRow(
        name=stage,
        seconds=seconds,
        units=int(totals["units"]),
        rows_in=int(totals["rows_in"]),
        rows_out=int(totals["rows_out"]),
        rows_quarantined=int(totals["rows_quarantined"]),
        rows_per_second=computed / busy if computed and busy else None,
        tokens_per_second=tokens / busy if tokens and busy else None,
    )


def _truncation(
    settings: PipelineSettings, totals: Mapping[str, Mapping[str, float]]
) -> tuple[Truncation, ...]:
    teacher, student = totals["sketch"], totals["embed"]
    cut = student[f"truncated_{embed.CORPUS}"] + student[f"truncated_{embed.QUERIES}"]
    return (
        Truncation("teacher", int(teacher["rows_out"]), int(teacher["truncated"]), settings.model.max_tokens),
        Truncation("student", int(student["rows_out"]), int(cut), settings.encoder.max_tokens),
    )


def _quarantine_reasons(root: Place, stages: Mapping[str, Any]) -> dict[str, int]:
    """How many rows each reason set aside, by the stages that vouch for them."""
    reasons: Counter[str] = Counter()
    for module in stages.values():
        table = module.state(root).read("quarantine", schemas.QUARANTINE)
        reasons.update(f"{row['stage']}: {row['reason']}" for row in table.to_pylist())
    return dict(reasons.most_common())
