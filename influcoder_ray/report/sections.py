"""What each section of the page shows, in words and formatted numbers: contents in, plain values out."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from influcoder_ray.report import figures
from influcoder_ray.report.contents import EpochRow, ReportContents, measured, number, section
from influcoder_ray.report.texts import one_line
from influcoder_ray.report.wording import MISSING, count, decimal, duration, percent, rate

MOST_REASONS = 20

METHODS = {
    "encoder": "Encoder, trained",
    "untrained_encoder": "Encoder, before training",
    "tfidf": "TF-IDF",
    "bm25": "BM25",
    "random": "Random order",
}
FIGURES = {
    "per_query_rho": "Rank agreement, per query",
    "aggregated_rho": "Rank agreement, aggregated",
    "recall_at_10": "Recall at 10",
}
HIGHER_IS_BETTER = ("rho", "recall", "auprc", "precision", "mrr", "lds")

STAGE_COLUMNS = (
    "Time",
    "Units computed",
    "Units kept",
    "Rows in",
    "Rows out",
    "Rows set aside",
    "Rows / s",
    "Tokens / s",
)


@dataclass(frozen=True)
class Headline:
    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Cell:
    mean: str
    std: str
    best: bool


@dataclass(frozen=True)
class QualityRow:
    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Quality:
    columns: tuple[str, ...]
    rows: tuple[QualityRow, ...]
    caption: str
    note: str


@dataclass(frozen=True)
class Drawing:
    name: str
    meaning: str
    svg: Markup | None
    absent: str
    table: tuple[EpochRow, ...] = ()


def _plural(amount: object, one: str, many: str) -> str:
    return f"{count(amount)} {one if number(amount) == 1 else many}"


def summary(contents: ReportContents) -> str:
    seconds = sum(row.seconds for row in contents.stages)
    took = f", in {duration(seconds)} of computing" if seconds else ""
    return (
        f"{_plural(contents.corpus_rows, 'row', 'rows')} of the corpus, "
        f"{_plural(len(contents.queries), 'query', 'queries')} shown{took}."
    )


def headline(contents: ReportContents) -> list[Headline]:
    def mean(method: str, figure: str) -> object:
        found = measured(contents.evaluation, method, figure)
        return found.mean if found else None

    worst = contents.worst_quarantine()
    of_stage = (
        f" of the rows that the stage {one_line(worst.stage, 40)} read, which lost most"
        if worst.stage
        else ""
    )
    return [
        Headline(
            "rank agreement with exact influence, per query",
            decimal(mean("encoder", "per_query_rho"), 2),
            f"Before training it was {decimal(mean('untrained_encoder', 'per_query_rho'), 2)}. 1 would be the exact "
            f"order. Aggregated over queries: {decimal(mean('encoder', 'aggregated_rho'), 2)}, "
            f"before {decimal(mean('untrained_encoder', 'aggregated_rho'), 2)}.",
        ),
        Headline(
            "rows of the corpus attributed",
            count(contents.corpus_rows),
            "Each has a score for each query, and its place among all the others.",
        ),
        Headline(
            "of rows not usable",
            percent(worst.share),
            f"The share{of_stage}. {_plural(contents.rows_quarantined, 'row was', 'rows were')} set aside in all, "
            "each with its reason.",
        ),
    ]


def checks(contents: ReportContents) -> list[tuple[str, str]]:
    evaluation = contents.evaluation
    audit, sketch = section(evaluation, "split_audit"), section(evaluation, "sketch_fidelity")
    found = [
        (
            "Measured on",
            f"{count(evaluation.get('queries'))} test queries by {count(evaluation.get('pool'))} test pool examples.",
        )
    ]
    if audit:
        apart = audit.get("disjoint") is True and not number(audit.get("shared_contents"))
        sizes = ", ".join(
            f"{one_line(str(name), 40)} {count(size)}" for name, size in section(audit, "sizes").items()
        )
        found.append(
            (
                "Splits by content",
                ("No content is in two splits." if apart else "Some content is in more than one split.")
                + (f" Sizes: {sizes}." if sizes else ""),
            )
        )
    else:
        found.append(("Splits by content", "Not audited."))
    found.append(
        (
            "Sketches against gradients",
            f"rho {decimal(sketch.get('rho'))}, mean absolute error of the cosine "
            f"{decimal(sketch.get('mean_absolute_error'), 4)}, over {_plural(sketch.get('pairs'), 'pair', 'pairs')} of "
            f"{_plural(sketch.get('examples'), 'example', 'examples')}; {count(sketch.get('width'))} numbers a sketch."
            if sketch
            else "Not measured.",
        )
    )
    if contents.truncation:
        cut = "; ".join(
            f"{one_line(row.who, 40)} {percent(row.share)} at {count(row.max_tokens)} tokens"
            for row in contents.truncation
        )
        found.append(("Cut to fit a window", f"{cut}."))
    return found


def quality(evaluation: Mapping[str, Any]) -> Quality:
    methods = [name for name, entry in section(evaluation, "methods").items() if isinstance(entry, Mapping)]
    named = dict.fromkeys(
        name for method in methods for name in section(section(evaluation, "methods"), method)
    )
    columns = [name for name in FIGURES if name in named] + [name for name in named if name not in FIGURES]
    best = {}
    for column in columns:
        known = [it.mean for method in methods if (it := measured(evaluation, method, column))]
        if len(known) > 1 and any(part in HIGHER_IS_BETTER for part in str(column).lower().split("_")):
            best[column] = max(known)

    def cell(method: str, column: str) -> Cell:
        found = measured(evaluation, method, column)
        if found is None:
            return Cell(MISSING, "", False)
        std = "" if found.std is None else decimal(found.std)
        return Cell(decimal(found.mean), std, found.mean == best.get(column))

    spread = evaluation.get("spread")
    note = "Recall at 10: how many of the ten truly most influential pool examples are among the method's first ten."
    return Quality(
        columns=tuple(FIGURES.get(name, _spoken(name)) for name in columns),
        rows=tuple(
            QualityRow(METHODS.get(name, _spoken(name)), tuple(cell(name, column) for column in columns))
            for name in methods
        ),
        caption=f"Against exact sketched gradients, on {count(evaluation.get('queries'))} queries by "
        f"{count(evaluation.get('pool'))} pool examples. Higher is better.",
        note=" ".join(
            sentence
            for sentence in (
                f"± {one_line(spread, 400)}" if isinstance(spread, str) and spread.strip() else "",
                note if "recall_at_10" in columns else "",
            )
            if sentence
        ),
    )


def _spoken(name: object) -> str:
    return one_line(str(name).replace("_", " "), 60)


def drawings(contents: ReportContents) -> list[Drawing]:
    rows = tuple(sorted(contents.epochs, key=lambda row: row.epoch))
    chosen = next((row for row in rows if row.chosen), None)
    kept = (
        f" Epoch {count(chosen.epoch)} was chosen on the validation split: {decimal(chosen.validation_per_query_rho)} "
        f"per query, {decimal(chosen.validation_aggregated_rho)} aggregated."
        if chosen
        else ""
    )
    training = figures.training_curve(rows, f"Validation rank agreement and training loss by epoch.{kept}")

    queries, pool = contents.predicted.shape if contents.predicted.ndim == 2 else (0, 0)
    per_query = measured(contents.evaluation, "encoder", "per_query_rho")
    pairs = figures.predicted_against_exact(
        contents.predicted,
        contents.exact,
        f"Exact against predicted influence for {count(queries)} test queries and {count(pool)} test pool examples; "
        f"rank agreement per query {decimal(per_query.mean if per_query else None)}.",
    )
    outside = (
        f" {_plural(pairs[1], 'extreme pair lies', 'extreme pairs lie')} outside the frame."
        if pairs and pairs[1]
        else ""
    )

    counts, edges = contents.score_histogram
    best = [query.attributions[0].score for query in contents.queries if query.attributions]
    known = [score for score in best if number(score) is not None]
    median = (
        f" The median of the queries' best scores is {decimal(statistics.median(known))}." if known else ""
    )
    scores = figures.score_distribution(
        counts,
        edges,
        known,
        f"Distribution of {count(counts.sum())} scores of the corpus for the queries.{median}",
    )
    return [
        Drawing(
            "Training",
            f"Rank agreement on the validation split after each epoch, and the training loss.{kept}",
            Markup(training) if training else None,
            "No training was recorded.",
            rows,
        ),
        Drawing(
            "Predicted against exact",
            f"All {count(queries * pool)} pairs of test queries and test pool. The deeper the colour, the more pairs. "
            f"A rising line means that what the encoder ranks higher does have more influence.{outside}",
            Markup(pairs[0]) if pairs else None,
            "No pairs of the test split were recorded.",
        ),
        Drawing(
            "Scores over the corpus",
            f"All {count(counts.sum())} scores. The examples listed below lie in the right tail.{median}",
            Markup(scores) if scores else None,
            "No scores were counted.",
        ),
    ]


def stages(contents: ReportContents) -> list[tuple[str, tuple[str, ...]]]:
    return [
        (
            one_line(row.name, 60),
            (
                duration(row.seconds),
                count(row.units_done),
                count(row.units_skipped),
                count(row.rows_in),
                count(row.rows_out),
                count(row.rows_quarantined),
                rate(row.rows_per_second),
                rate(row.tokens_per_second),
            ),
        )
        for row in contents.stages
    ]


def reasons(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    ordered = sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))
    shown = [(one_line(reason, 160) or "(no reason given)", rows) for reason, rows in ordered[:MOST_REASONS]]
    others = ordered[MOST_REASONS:]
    if others:
        shown.append(
            (f"{_plural(len(others), 'other reason', 'other reasons')}", sum(rows for _, rows in others))
        )
    return shown
