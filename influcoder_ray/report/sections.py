"""What each section of the page shows, in words and formatted numbers: contents in, plain values out."""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from influcoder_ray.report import figures
from influcoder_ray.report.contents import (
    EpochRow,
    Measured,
    QueryPage,
    ReportContents,
    lead,
    measured,
    number,
    over_seeds,
    section,
)
from influcoder_ray.report.texts import one_line
from influcoder_ray.report.wording import MISSING, count, decimal, duration, percent, percentile, rate

MOST_REASONS = 20

METHODS = {
    "encoder": "Encoder, trained",
    "encoder_by_text": "Encoder, trained, of queries knowing the text alone",
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
    "Units",
    "Rows in",
    "Rows out",
    "Rows set aside",
    "Rows / s",
    "Tokens / s",
)


@dataclass(frozen=True)
class Headline:
    """One large number, what it counts and what it means."""

    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Cell:
    """One method's figure; `best` where no other method has a higher one. `aside` stands behind it."""

    mean: str
    std: str
    best: bool
    aside: str = ""


@dataclass(frozen=True)
class QualityRow:
    """One method, with a cell for each column of the table."""

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Quality:
    """A table of quality, method by figure."""

    columns: tuple[str, ...]
    rows: tuple[QualityRow, ...]
    caption: str
    note: str


@dataclass(frozen=True)
class RerankingTable:
    """What re-ranking gains and costs: a row of cells for each share of the pool."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    caption: str


@dataclass(frozen=True)
class Drawing:
    """One figure with its caption; `absent` says why there is none where `svg` is None."""

    name: str
    meaning: str
    svg: Markup | None
    absent: str
    table: tuple[EpochRow, ...] = ()


def _plural(amount: object, one: str, many: str) -> str:
    return f"{count(amount)} {one if number(amount) == 1 else many}"


def summary(contents: ReportContents) -> str:
    """What was run, in a line below the title."""
    seconds = sum(row.seconds for row in contents.stages)
    took = f", in {duration(seconds)} of computing" if seconds else ""
    return (
        f"{_plural(contents.corpus_rows, 'row', 'rows')} of the corpus, "
        f"{_plural(len(contents.queries), 'query', 'queries')} shown{took}."
    )


def headline(contents: ReportContents) -> list[Headline]:
    """The three numbers that a reader takes away."""

    def mean(method: str, figure: str) -> str:
        found = measured(contents.evaluation, method, figure)
        return decimal(found.mean if found else None, 2)

    worst = contents.worst_quarantine()
    of_stage = f" of the rows that the stage {one_line(worst.stage, 40)} read" if worst.stage else ""
    lost_most = ", which lost most" if worst.stage and worst.rows else ""
    return [
        Headline(
            "rank agreement with exact influence, per query",
            mean("encoder", "per_query_rho"),
            f"Before training it was {mean('untrained_encoder', 'per_query_rho')}. 1 would be the exact "
            f"order. Aggregated over queries: {mean('encoder', 'aggregated_rho')}, "
            f"before training {mean('untrained_encoder', 'aggregated_rho')}.",
        ),
        Headline(
            "rows of the corpus attributed",
            count(contents.corpus_rows),
            "Each has a score for each query, and its place among all the others.",
        ),
        Headline(
            "of rows not usable",
            percent(worst.share),
            f"The share{of_stage}{lost_most}. Over the whole run "
            f"{_plural(contents.rows_quarantined, 'row was', 'rows were')} set aside.",
        ),
    ]


def checks(contents: ReportContents) -> list[tuple[str, str]]:
    """What the quality figures rest on: a name and a finding each."""
    return [
        ("Measured on", f"{_test_size(contents.evaluation)}."),
        ("Splits by content", _splits(section(contents.evaluation, "split_audit"))),
        ("Sketches against gradients", _sketches(section(contents.evaluation, "sketch_fidelity"))),
        ("Far from what was trained on", _unfamiliar(contents)),
        ("Agreement by familiarity", _by_familiarity(contents.evaluation)),
        ("Cut to fit a window", _windows(contents)),
    ]


def _test_size(evaluation: Mapping[str, Any]) -> str:
    queries, pool = evaluation.get("queries"), evaluation.get("pool")
    return f"{count(queries)} test queries by {count(pool)} test pool examples"


def _splits(audit: Mapping[str, Any]) -> str:
    if not audit:
        return "Not audited."
    apart = audit.get("disjoint") is True and not number(audit.get("shared_contents"))
    sizes = [f"{one_line(str(name), 40)} {count(size)}" for name, size in section(audit, "sizes").items()]
    findings = ["No content is in two splits." if apart else "Some content is in more than one split."]
    if near := section(audit, "near_duplicates"):
        amounts = [f"{one_line(str(name), 40)} {count(amount)}" for name, amount in near.items()]
        findings.append(
            "Test examples that equal a training example but for case, punctuation and numbers: "
            f"{', '.join(amounts)}."
        )
    if sizes:
        findings.append(f"Sizes: {', '.join(sizes)}.")
    return " ".join(findings)


def _sketches(fidelity: Mapping[str, Any]) -> str:
    if not fidelity:
        return "Not measured."
    return (
        f"Rho {decimal(fidelity.get('rho'))}, mean absolute error of the cosine "
        f"{decimal(fidelity.get('mean_absolute_error'), 4)}, over "
        f"{_plural(fidelity.get('pairs'), 'pair', 'pairs')} of "
        f"{_plural(fidelity.get('examples'), 'example', 'examples')}; "
        f"{count(fidelity.get('width'))} numbers a sketch."
    )


def _unfamiliar(contents: ReportContents) -> str:
    it = contents.unfamiliar
    shares = (
        (it.rows, contents.corpus_rows, "of the corpus's rows"),
        (it.queries, it.all_queries, "of the queries"),
        (it.answers, it.all_answers, "of all examples kept for them"),
    )
    found = [f"{percent(part / of if of else None)} {name} ({count(part)})" for part, of, name in shares]
    return f"Unfamiliar, below {percent(it.below / 100)}: {', '.join(found[:-1])} and {found[-1]}."


def _by_familiarity(evaluation: Mapping[str, Any]) -> str:
    bins = evaluation.get("agreement_by_familiarity")
    if not isinstance(bins, list) or not bins:
        return "Not measured."
    found = []
    for row in bins:
        figures = row if isinstance(row, Mapping) else {}
        rho = section(figures, "per_query_rho")
        found.append(
            f"{decimal(rho.get('mean'))} ± {decimal(rho.get('std'))} at familiarity "
            f"{count(figures.get('from'))} to {count(figures.get('to'))}"
        )
    return f"Rank agreement per query among test pool examples that are alike in it: {', '.join(found)}."


def query_familiarity(query: QueryPage) -> str:
    """How familiar a query and the examples kept for it are, in a sentence; empty where not known."""
    it = query.familiarity
    if it is None:
        return ""
    mark = ", unfamiliar to the encoder" if it.unfamiliar else ""
    return (
        f"Familiarity {percentile(it.familiarity)}%{mark}; of the {count(it.answers)} examples kept for it "
        f"{count(it.unfamiliar_answers)} {'is' if it.unfamiliar_answers == 1 else 'are'} unfamiliar."
    )


def _windows(contents: ReportContents) -> str:
    found = [
        f"{one_line(row.who, 40).capitalize()}: {percent(row.share)} of the examples, "
        f"at {count(row.max_tokens)} tokens."
        for row in contents.truncation
    ]
    return " ".join(found) or "Not recorded."


def quality(evaluation: Mapping[str, Any]) -> Quality:
    """Every method and every figure that the evaluation holds, the ones known here first."""
    methods = [name for name, entry in section(evaluation, "methods").items() if isinstance(entry, Mapping)]
    named = dict.fromkeys(
        name for method in methods for name in section(section(evaluation, "methods"), method)
    )
    columns = _known_first(named)
    best = {}
    for column in columns:
        known = [it.mean for method in methods if (it := measured(evaluation, method, column))]
        if len(known) > 1 and any(part in HIGHER_IS_BETTER for part in str(column).lower().split("_")):
            best[column] = max(known)

    def cell(method: str, column: str) -> Cell:
        found = measured(evaluation, method, column)
        return _cell(found, best=found is not None and found.mean == best.get(column))

    rows = [
        QualityRow(METHODS.get(name, _spoken(name)), tuple(cell(name, column) for column in columns))
        for name in methods
    ]
    if several := _seeds_row(evaluation, columns):
        rows.insert(methods.index("encoder") + 1, several)
    spread = evaluation.get("spread")
    notes = []
    if "recall_at_10" in columns:
        notes.append("Recall at 10: the share of the ten truly most influential pool examples ")
        notes.append("that are among the method's first ten. ")
    if isinstance(spread, str) and spread.strip():
        notes.append(f"The spread (±): {one_line(spread, 400)}")
    higher = " Higher is better." if all(column in best for column in columns) else ""
    return Quality(
        columns=tuple(FIGURES.get(name, _spoken(name)) for name in columns),
        rows=tuple(rows),
        caption=f"Against exact sketched gradients, on {_test_size(evaluation)}.{higher} "
        "The best of each figure is bold.",
        note="".join(notes),
    )


def reranking(evaluation: Mapping[str, Any]) -> RerankingTable | None:
    """Recall and overlap by the share of the pool that is re-ranked, with its cost; None if not evaluated."""
    points = _points(evaluation, "encoder")
    if not points:
        return None
    untrained = {number(it.get("share")): it for it in _points(evaluation, "untrained_encoder")}
    names = _measures_at_k(points, "recall|own_recall|overlap")
    recalls = _measures_at_k(points, "recall")

    def cell(point: Mapping[str, Any], name: str) -> Cell:
        found = section(point, name)
        std = number(found.get("std"))
        return Cell(decimal(found.get("mean")), "" if std is None else decimal(std), False)

    rows = []
    for point in points:
        before = untrained.get(number(point.get("share")), {})
        evaluations = (
            f"{count(point.get('gradient_evaluations'))} ({percent(point.get('pool_share_evaluated'))})"
        )
        cells = (
            Cell(count(point.get("candidates")), "", False),
            Cell(evaluations, "", False),
            *(cell(point, name) for name in names),
            *(cell(before, name) for name in recalls),
        )
        rows.append((percent(point.get("share")), cells))
    columns = [_measure(name) for name in names]
    columns += [f"{_measure(name)}, before training" for name in recalls]
    return RerankingTable(
        columns=("Share re-ranked", "Candidates a query", "Gradients (of the pool)", *columns),
        rows=tuple(rows),
        caption="Exact re-ranking: the encoder's best of all queries, ordered for each query by exact "
        "influence. Gradients counts the different candidates of all test queries: each is computed once and "
        "serves every query. Own recall: were each query to rank its own candidates alone. Overlap: the mean "
        "share of the exact top that is found, over depths from one on, so that the first places count most.",
    )


def _points(evaluation: Mapping[str, Any], method: str) -> list[Mapping[str, Any]]:
    """The points of a method's re-ranking curve whose share is known, by share."""
    found = section(evaluation, "reranking").get(method)
    points = [it for it in found if isinstance(it, Mapping)] if isinstance(found, list) else []
    known = [(share, it) for it in points if (share := number(it.get("share"))) is not None]
    return [it for _, it in sorted(known, key=lambda pair: pair[0])]


def _measures_at_k(points: Sequence[Mapping[str, Any]], kinds: str) -> list[str]:
    """The measures of these kinds (a pattern) that the first point holds."""
    return [name for name in (points[0] if points else {}) if re.fullmatch(rf"({kinds})_at_\d+", str(name))]


def _measure(name: object) -> str:
    return _spoken(name).capitalize()


def _seeds_row(evaluation: Mapping[str, Any], columns: Sequence[str]) -> QualityRow | None:
    """The encoder's figures over training seeds, where there are several."""
    figures = [over_seeds(evaluation, column) for column in columns]
    if not any(figures):
        return None
    seeds = evaluation.get("seeds")
    amount = f" of {count(len(seeds))}" if isinstance(seeds, list) else " of all"
    return QualityRow(f"Encoder, mean{amount} training seeds", tuple(map(_cell, figures)))


def leads(evaluation: Mapping[str, Any]) -> Quality:
    """By how much the encoder is ahead of each rival, and how surely; without rows where unmeasured."""
    rivals = section(evaluation, "leads")
    named = dict.fromkeys(name for rival in rivals for name in section(rivals, rival))
    columns = _known_first(named)

    def cell(rival: str, column: str) -> Cell:
        found = lead(evaluation, rival, column)
        if found is None:
            return _cell(None)
        plain = _cell(Measured(found.mean, found.std))
        aside = "" if found.share_ahead is None else percent(found.share_ahead)
        return replace(plain, mean=("+" if found.mean > 0 else "") + plain.mean, aside=aside)

    return Quality(
        columns=tuple(FIGURES.get(name, _spoken(name)) for name in columns),
        rows=tuple(
            QualityRow(METHODS.get(rival, _spoken(rival)), tuple(cell(rival, column) for column in columns))
            for rival in rivals
        ),
        caption="By how much the trained encoder is ahead of each of the others.",
        note="The difference on the same test queries, its spread (±) over bootstrap resamples of them, and "
        "the share of the resamples in which the encoder is ahead.",
    )


def _cell(found: Measured | None, *, best: bool = False) -> Cell:
    if found is None:
        return Cell(MISSING, "", False)
    return Cell(decimal(found.mean), "" if found.std is None else decimal(found.std), best)


def _known_first(names: Iterable[str]) -> list[str]:
    """The names of figures, those that have a heading of their own first."""
    given = list(names)
    return [name for name in FIGURES if name in given] + [name for name in given if name not in FIGURES]


def _spoken(name: object) -> str:
    return one_line(str(name).replace("_", " "), 60)


def drawings(contents: ReportContents) -> list[Drawing]:
    """The figures in the order of the page: training, predicted against exact, scores, and re-ranking where
    it was evaluated."""
    return [_training(contents), _pairs(contents), _scores(contents), *_reranking(contents.evaluation)]


def _training(contents: ReportContents) -> Drawing:
    rows = tuple(sorted(contents.epochs, key=lambda row: row.epoch))
    chosen = next((row for row in rows if row.chosen), None)
    kept = (
        f" Epoch {count(chosen.epoch)} was chosen on it: {decimal(chosen.validation_per_query_rho)} "
        f"per query, {decimal(chosen.validation_aggregated_rho)} aggregated."
        if chosen
        else ""
    )
    meaning = f"Training loss, and rank agreement on the validation split, after each epoch.{kept}"
    svg = figures.training_curve(rows, meaning)
    return Drawing("Training", meaning, Markup(svg) if svg else None, "No training was recorded.", rows)


def _pairs(contents: ReportContents) -> Drawing:
    meaning = (
        f"All {count(contents.predicted.size)} pairs of test queries and test pool examples. "
        "The deeper the colour, the more pairs."
    )
    rho = measured(contents.evaluation, "encoder", "per_query_rho")
    agreement = f" Rank agreement per query is {decimal(rho.mean)}." if rho else ""
    drawn = figures.predicted_against_exact(contents.predicted, contents.exact, meaning + agreement)
    if drawn is None:
        return Drawing("Predicted against exact", "", None, "No pairs of the test split were recorded.")
    if drawn.has_trend:
        meaning += (
            " The line joins the median exact influence of each tenth of the pairs, with its middle half: "
            "it should rise."
        )
    if drawn.outside:
        meaning += f" {_plural(drawn.outside, 'extreme pair lies', 'extreme pairs lie')} outside the frame."
    return Drawing("Predicted against exact", meaning, Markup(drawn.svg), "")


def _scores(contents: ReportContents) -> Drawing:
    counts, edges = contents.score_histogram
    first = (
        query.attributions[0].score if query.encoder_best is None else query.encoder_best
        for query in contents.queries
        if query.attributions
    )
    best = [score for score in first if number(score) is not None]
    median = f" The median of the queries' best scores is {decimal(statistics.median(best))}." if best else ""
    meaning = f"All {count(counts.sum())} scores of the corpus for the queries.{median}"
    svg = figures.score_distribution(counts, edges, best, meaning)
    if svg is None:
        return Drawing("Scores over the corpus", "", None, "No scores were counted.")
    return Drawing("Scores over the corpus", meaning, Markup(svg), "")


def _reranking(evaluation: Mapping[str, Any]) -> list[Drawing]:
    points = _points(evaluation, "encoder")
    names = _measures_at_k(points, "recall")
    if not names:
        return []
    name = "recall_at_10" if "recall_at_10" in names else names[0]

    def mean(point: Mapping[str, Any]) -> float | None:
        return number(section(point, name).get("mean"))

    drawn = [it for it in points if mean(it) is not None]
    if not drawn:
        return []
    shares = [float(it["share"]) for it in drawn]
    gains = []
    for method, legend in (("encoder", "trained"), ("untrained_encoder", "before training")):
        by_share = {number(it.get("share")): it for it in _points(evaluation, method)}
        found = [section(by_share.get(share, {}), name) for share in shares]
        gains.append(
            figures.Gain(
                legend,
                [_drawable(it.get("mean")) for it in found],
                [max(number(it.get("std")) or 0.0, 0.0) for it in found],
            )
        )
    costs = [_drawable(it.get("pool_share_evaluated")) for it in drawn]
    last = drawn[-1]
    meaning = (
        f"{_measure(name)} when the encoder's best examples of each query are ordered by exact influence, by "
        "the share of the pool that is so ordered. "
        f"From {decimal(mean(drawn[0]))} at {percent(drawn[0]['share'])} to "
        f"{decimal(mean(last))} at {percent(last['share'])}, which takes the gradients of "
        f"{percent(last.get('pool_share_evaluated'))} of the pool for all test queries together."
    )
    svg = figures.reranking_gain(shares, gains, costs, _spoken(name), meaning)
    return [Drawing("Exact re-ranking", meaning, Markup(svg), "")] if svg else []


def _drawable(value: object) -> float:
    known = number(value)
    return math.nan if known is None else known


def order_note(contents: ReportContents) -> str:
    """By what the queries' examples are ordered, where that is not the encoder."""
    done = contents.reranked
    if done is None:
        return ""
    return (
        f"The gradients of the encoder's {count(done.candidates)} best of each query were taken, and every "
        "query ranks them all by exact influence: the score is the cosine of two gradients, and beside it "
        "stands the place that the encoder gave, if it kept the example for that query. "
        f"They are {_plural(done.contents, 'different example', 'different examples')}, for which "
        f"{_plural(done.gradient_evaluations, 'gradient was', 'gradients were')} computed; the others' were "
        "in the sample. An example without a score has no gradient, or was not among those: it stands behind."
    )


def stages(contents: ReportContents) -> list[tuple[str, tuple[str, ...]]]:
    """Each stage's name and its cells, in the order of `STAGE_COLUMNS`."""
    return [
        (
            one_line(row.name, 60),
            (
                duration(row.seconds),
                count(row.units),
                count(row.rows_in),
                count(row.rows_out),
                count(row.rows_quarantined),
                rate(row.rows_per_second),
                rate(row.tokens_per_second),
            ),
        )
        for row in contents.stages
    ]


def quarantine_reasons(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """The commonest reasons with their rows, and the rest as one."""
    ordered = sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))
    shown = [(one_line(reason, 160) or "(no reason given)", rows) for reason, rows in ordered[:MOST_REASONS]]
    others = ordered[MOST_REASONS:]
    if others:
        shown.append(
            (f"{_plural(len(others), 'other reason', 'other reasons')}", sum(rows for _, rows in others))
        )
    return shown
