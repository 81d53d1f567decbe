"""A breakdown in a terminal, and as JSON."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from influcoder_ray.explain.breakdown import breakdown
from influcoder_ray.json_file import refuse_folder, write_json
from influcoder_ray.pipeline import settings_of_run
from influcoder_ray.report.texts import middle_cut

# Parts that are shown, and characters of a part's name.
_SHOWN, _NAME = 40, 48


def tell(
    output: str,
    by: str | None,
    top: float,
    json_file: Path | None,
    overrides: Sequence[str],
    console: Console,
) -> None:
    """Print how much of a run's influence each part of its corpus has, and write it where that is asked for.

    Args:
        by, top: as for `breakdown`.

    Raises:
        UserError: as `breakdown`, or the file cannot be written.
    """
    refuse_folder(json_file)
    with console.status("Reading the scores"):
        found = breakdown(settings_of_run(output, overrides), by, top)
    rows = found.to_pylist()
    table = Table(title=Text(f"{sum(row['rows'] for row in rows):,} rows by {by or 'file'}"))
    table.add_column(Text(by or "file"))
    for heading in ("rows", "of all", "mean score", f"of the top {100 * top:g}%", "lift", "of queries' best"):
        table.add_column(heading, justify="right")
    for row in rows[:_SHOWN]:
        table.add_row(
            Text(middle_cut(row["value"], _NAME)),
            f"{row['rows']:,}",
            f"{row['share_of_rows']:.1%}",
            f"{row['mean_score']:.4f}",
            f"{row['share_of_top']:.1%}",
            f"{row['lift']:.2f}",
            f"{row['share_of_attributions']:.1%}",
        )
    console.print(table)
    if len(rows) > _SHOWN:
        console.print(f"{len(rows) - _SHOWN:,} more are left out here", highlight=False)
    console.print(
        "lift: how many times as often its rows are among the most influential as rows at random",
        highlight=False,
    )
    if json_file is not None:
        write_json(json_file, {"by": by, "top": top, "parts": rows})
