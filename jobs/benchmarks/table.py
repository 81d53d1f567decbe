"""The benchmarks' figures as tables that a person reads."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Table


def show_gradients(figures: dict[str, Any]) -> None:
    """Print what the benchmark of gradients found."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = Table(title="Per-example gradients")
    table.add_column("part")
    for heading in ("tokens a batch", "tokens / s", "of plain", "padding", "peak memory"):
        table.add_column(heading, justify="right")
    plain = figures["plain_tokens_per_second"]
    for part in figures["parts"]:
        peak = part["peak_memory_bytes"]
        table.add_row(
            part["part"],
            str(part["tokens_per_batch"] or ""),
            f"{part['tokens_per_second']:,.1f}",
            f"{part['tokens_per_second'] / plain:.3f}",
            f"{part['padding_share']:.1%}",
            "unknown" if peak is None else f"{peak / 2**20:,.0f} MiB",
        )
    bergson = figures["bergson_tokens_per_second"]
    if bergson is not None:
        table.add_row("bergson", "", f"{bergson:,.1f}", f"{bergson / plain:.3f}", "", "")
    console.print(table)
    console.print(
        f"{figures['rows']} rows, {figures['tokens']} tokens ({figures['labelled_tokens']} labelled), "
        f"{figures['layout']}; {figures['dtype']} on {figures['device_name']}, "
        f"threads {figures['threads']}; {figures['figure']}"
    )
    console.print(
        f"ours: {figures['ratio_to_plain']:.3f} of plain, "
        f"{figures['ratio_to_one_at_a_time']:.2f} times one at a time; "
        f"relative error to autograd {figures['relative_error_to_autograd']:.2g}"
    )
    if figures["model_flops_utilization"] is not None:
        console.print(
            f"of the card's peak: ours {figures['model_flops_utilization']:.1%}, "
            f"plain {figures['plain_model_flops_utilization']:.1%}"
        )
    if figures["sketch_share"] is not None:
        console.print(f"the sketch takes {figures['sketch_share']:.1%} of our time")
    if bergson is None:
        console.print(f"bergson: {figures['bergson_note']}", markup=False)


def show_units(figures: dict[str, Any]) -> None:
    """Print what the benchmark of units found."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = Table(
        title=f"{figures['units']:,} units of {figures['sleep_seconds']:g} s of sleep on "
        f"{figures['actors']} actors"
    )
    table.add_column("figure")
    table.add_column("while all actors were up", justify="right")
    table.add_column("start-up included", justify="right")
    table.add_row(
        "share of the ideal throughput",
        f"{figures['share_of_ideal']:.1%}",
        f"{figures['share_of_ideal_with_start_up']:.1%}",
    )
    table.add_row(
        "two workers over one",
        f"{figures['two_workers_over_one']:.2f}",
        f"{figures['two_workers_over_one_with_start_up']:.2f}",
    )
    table.add_row(
        "units a second",
        f"{figures['units_per_second']:.2f}",
        f"{figures['units'] / figures['wall_seconds']:.2f}",
    )
    console.print(table)
    held, plan = figures["driver_bytes_per_planned_unit"], figures["driver_bytes_per_unit_of_plan"]
    memory = "unknown" if held is None else f"{held:,.0f} bytes a unit, the plan itself {plan:,.0f}"
    console.print(
        f"{figures['planned_units']:,} units are planned in {figures['seconds_to_plan']:.1f} s; "
        f"driver memory: {memory} (run for {figures['memory_seconds']:g} s after the first unit)"
    )
