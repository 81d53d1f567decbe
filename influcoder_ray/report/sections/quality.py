"""The quality of every method on the test split, and what exact re-ranking adds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from influcoder_ray.report.blocks import Block, Cell, Heading, Prose, Row, Section, Table
from influcoder_ray.report.contents import Measured, ReportContents, lead, measured, over_seeds
from influcoder_ray.report.contents import section as part
from influcoder_ray.report.sections.methods import (
    HIGHER_IS_BETTER,
    figure_cell,
    figure_name,
    known_first,
    method_name,
    sample_size,
)
from influcoder_ray.report.sections.reranking import reranking
from influcoder_ray.report.texts import one_line
from influcoder_ray.report.wording import count, percent


def section(contents: ReportContents) -> Section:
    blocks: list[Block] = []
    table = quality(contents.evaluation)
    if table.rows:
        blocks.append(table)
        against = leads(contents.evaluation)
        if against.rows:
            blocks += [Heading("The encoder against the others"), against]
    else:
        blocks.append(Prose("No method was evaluated in this run.", muted=True))
    reranked = reranking(contents.evaluation)
    if reranked:
        blocks += [Heading("What exact re-ranking adds"), reranked]
    return Section("quality", "Quality", "Quality on the test split", tuple(blocks))


def quality(evaluation: Mapping[str, Any]) -> Table:
    """Every method and every figure that the evaluation holds, the ones known here first."""
    methods = [name for name, entry in part(evaluation, "methods").items() if isinstance(entry, Mapping)]
    named = dict.fromkeys(name for method in methods for name in part(part(evaluation, "methods"), method))
    columns = known_first(named)
    best = {}
    for column in columns:
        known = [it.mean for method in methods if (it := measured(evaluation, method, column))]
        if len(known) > 1 and any(word in HIGHER_IS_BETTER for word in str(column).lower().split("_")):
            best[column] = max(known)

    def cell(method: str, column: str) -> Cell:
        found = measured(evaluation, method, column)
        return figure_cell(found, best=found is not None and found.mean == best.get(column))

    rows = [Row(method_name(name), tuple(cell(name, column) for column in columns)) for name in methods]
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
    return Table(
        label="Quality of each method",
        corner="Method",
        columns=tuple(map(figure_name, columns)),
        rows=tuple(rows),
        caption=f"Against exact sketched gradients, on {sample_size(evaluation)}.{higher} "
        "The best of each figure is bold.",
        note="".join(notes),
    )


def leads(evaluation: Mapping[str, Any]) -> Table:
    """By how much the encoder is ahead of each rival, and how surely; without rows where unmeasured."""
    rivals = part(evaluation, "leads")
    columns = known_first(dict.fromkeys(name for rival in rivals for name in part(rivals, rival)))

    def cell(rival: str, column: str) -> Cell:
        found = lead(evaluation, rival, column)
        if found is None:
            return figure_cell(None)
        plain = figure_cell(Measured(found.mean, found.std))
        aside = "" if found.share_ahead is None else percent(found.share_ahead)
        return replace(plain, mean=("+" if found.mean > 0 else "") + plain.mean, aside=aside)

    return Table(
        label="The encoder's lead over each method",
        corner="Method",
        columns=tuple(map(figure_name, columns)),
        rows=tuple(
            Row(method_name(rival), tuple(cell(rival, column) for column in columns)) for rival in rivals
        ),
        caption="By how much the trained encoder is ahead of each of the others.",
        note="The difference on the same test queries, its spread (±) over bootstrap resamples of them, and "
        "the share of the resamples in which the encoder is ahead.",
    )


def _seeds_row(evaluation: Mapping[str, Any], columns: Sequence[str]) -> Row | None:
    """The encoder's figures over training seeds, where there are several."""
    figures = [over_seeds(evaluation, column) for column in columns]
    if not any(figures):
        return None
    seeds = evaluation.get("seeds")
    amount = f" of {count(len(seeds))}" if isinstance(seeds, list) else " of all"
    return Row(f"Encoder, mean{amount} training seeds", tuple(map(figure_cell, figures)))
