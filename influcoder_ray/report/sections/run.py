"""How the run went, and the settings that replay it."""

from collections.abc import Mapping

from influcoder_ray.report.blocks import Block, Cell, Columns, Fold, Heading, Prose, Row, Section, Table
from influcoder_ray.report.contents import ReportContents
from influcoder_ray.report.texts import as_yaml, one_line
from influcoder_ray.report.wording import count, duration, percent, plural, rate

MOST_REASONS = 20
COLUMNS = ("Time", "Units", "Rows in", "Rows out", "Rows set aside", "Rows / s", "Tokens / s")


def section(contents: ReportContents) -> Section:
    stages: Block = (
        Table(
            label="Stages of the run",
            corner="Stage",
            columns=COLUMNS,
            rows=tuple(stage_rows(contents)),
            caption="Stages in order. Units that an earlier run had finished were not computed again. "
            "Rows and tokens a second are those of one worker while it computes.",
            stacked=True,
        )
        if contents.stages
        else Prose("No stage reported its counts.", muted=True)
    )
    truncated = Columns(((Heading("Truncated examples"), _truncation(contents)), _set_aside(contents)))
    return Section("run", "Run", "The run", (stages, truncated))


def settings(contents: ReportContents) -> Section:
    return Section(
        "settings",
        "Settings",
        "Settings",
        (
            Prose("The same settings and the same data give the same tables."),
            Fold("All settings of this run, as YAML", as_yaml(contents.settings)),
        ),
    )


def stage_rows(contents: ReportContents) -> list[Row]:
    """A row for each stage, with its cells in the order of `COLUMNS`."""
    return [
        Row(
            one_line(row.name, 60),
            tuple(
                map(
                    Cell,
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
            (f"{plural(len(others), 'other reason', 'other reasons')}", sum(rows for _, rows in others))
        )
    return shown


def _truncation(contents: ReportContents) -> Block:
    if not contents.truncation:
        return Prose("Not recorded.", muted=True)
    rows = tuple(
        Row(
            one_line(row.who, 40),
            (
                Cell(f"{count(row.max_tokens)} tokens"),
                Cell(f"{count(row.truncated)} of {count(row.examples)} ({percent(row.share)})"),
            ),
        )
        for row in contents.truncation
    )
    return Table("Truncated examples", "Model", ("Window", "Truncated"), rows)


def _set_aside(contents: ReportContents) -> tuple[Block, ...]:
    heading = Heading("Rows set aside")
    reasons = quarantine_reasons(contents.quarantine_reasons)
    rows = tuple(Row(reason, (Cell(count(amount)),)) for reason, amount in reasons)
    aside: Block = (
        Table("Rows set aside", "Reason", ("Rows",), rows)
        if rows
        else Prose("None: every row could be used.", muted=True)
    )
    if not contents.rows_left_out:
        return heading, aside
    left_out = plural(contents.rows_left_out, "row does", "rows do")
    return heading, aside, Prose(f"{left_out} not meet the conditions of the settings, and had no part.")
