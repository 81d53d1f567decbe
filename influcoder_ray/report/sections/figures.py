"""The section of figures: training, predicted against exact influence, scores, and re-ranking."""

import statistics

from markupsafe import Markup

from influcoder_ray.report import figures
from influcoder_ray.report.blocks import Cell, Drawing, Row, Section, Table
from influcoder_ray.report.contents import EpochRow, ReportContents, measured, number
from influcoder_ray.report.sections import reranking
from influcoder_ray.report.wording import count, decimal, plural


def section(contents: ReportContents) -> Section:
    return Section("figures", "Figures", "Figures", tuple(drawings(contents)))


def drawings(contents: ReportContents) -> list[Drawing]:
    """The figures in the order of the page: training, predicted against exact, scores, and re-ranking where
    it was evaluated."""
    gain = reranking.drawing(contents.evaluation)
    return [_training(contents), _pairs(contents), _scores(contents), *([gain] if gain else [])]


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
    table = Table(
        label="Agreement and loss by epoch",
        corner="Epoch",
        columns=("Per query", "Aggre\N{SOFT HYPHEN}gated", "Loss"),
        rows=tuple(map(_epoch, rows)),
    )
    drawn = Markup(svg) if svg else None
    return Drawing("Training", meaning, drawn, "No training was recorded.", table if rows else None)


def _epoch(row: EpochRow) -> Row:
    figures_of_it = (row.validation_per_query_rho, row.validation_aggregated_rho, row.loss)
    cells = tuple(Cell(decimal(value)) for value in figures_of_it)
    return Row(count(row.epoch), cells, "chosen" if row.chosen else "")


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
        meaning += f" {plural(drawn.outside, 'extreme pair lies', 'extreme pairs lie')} outside the frame."
    return Drawing("Predicted against exact", meaning, Markup(drawn.svg), "")


def _scores(contents: ReportContents) -> Drawing:
    counts, edges = contents.score_histogram
    best = [score for score in contents.best_scores if number(score) is not None]
    median = f" The median of the queries' best scores is {decimal(statistics.median(best))}." if best else ""
    meaning = f"All {count(counts.sum())} scores of the corpus for the queries.{median}"
    svg = figures.score_distribution(counts, edges, best, meaning)
    if svg is None:
        return Drawing("Scores over the corpus", "", None, "No scores were counted.")
    return Drawing("Scores over the corpus", meaning, Markup(svg), "")
