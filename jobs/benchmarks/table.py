"""The benchmarks' figures as tables that a person reads."""

import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
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


def show_embedding(figures: dict[str, Any]) -> None:
    """Print what the benchmark of embedding found."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = Table(title="Embedding")
    table.add_column("part")
    for heading in ("tokens a batch", "documents / s", "tokens / s", "of bare", "padding", "peak memory"):
        table.add_column(heading, justify="right")
    bare = max(p["tokens_per_second"] for p in figures["parts"] if p["part"] == "bare forward")
    for part in figures["parts"]:
        peak = part["peak_memory_bytes"]
        table.add_row(
            part["part"],
            str(part["tokens_per_batch"] or ""),
            f"{part['documents_per_second']:,.1f}",
            f"{part['tokens_per_second']:,.0f}",
            f"{part['tokens_per_second'] / bare:.3f}",
            f"{part['padding_share']:.1%}",
            "unknown" if peak is None else f"{peak / 2**20:,.0f} MiB",
        )
    console.print(table)
    console.print(
        f"{figures['rows']} rows ({figures['raw_text_rows']} of raw text, {figures['rows_cut']} cut to "
        f"{figures['max_tokens']} tokens), {figures['tokens']} tokens; {figures['dtype']} on "
        f"{figures['device_name']}, threads {figures['threads']}; {figures['figure']}"
    )
    lines = [f"ours: {figures['ratio_to_bare_forward']:.3f} of bare forward"]
    if figures["ratio_to_sentence_transformers"] is not None:
        lines[0] += (
            f", {figures['ratio_to_sentence_transformers']:.2f} times sentence_transformers; vectors differ "
            f"by {figures['largest_difference_to_sentence_transformers']:.2g} at most"
        )
    if figures["ray_ratio_to_without_ray"] is not None:
        lines.append(
            f"the whole stage on Ray, start-up apart: {figures['ray_ratio_to_without_ray']:.3f} of the same "
            f"without Ray ({figures['seconds_on_ray']:.2f} s and {figures['seconds_without_ray']:.2f} s)"
        )
    for line in lines:
        console.print(line)


def show_units(figures: dict[str, Any]) -> None:
    """Print what the benchmark of units found."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if "units" in figures:
        _show_throughput(figures, console)
    held, plan = figures["driver_bytes_per_planned_unit"], figures["driver_bytes_per_unit_of_plan"]
    memory = "unknown" if held is None else f"{held:,.0f} bytes a unit, the plan itself {plan:,.0f}"
    console.print(
        f"{figures['planned_units']:,} units are planned in {figures['seconds_to_plan']:.1f} s; "
        f"driver memory: {memory} (run for {figures['memory_seconds']:g} s after the first unit)"
    )
    console.print(
        f"{figures['listed_files']:,} files of {figures['listed_rows']:,} rows are listed in "
        f"{figures['seconds_to_list']:.1f} s, and cut into {figures['listed_units']:,} units in "
        f"{figures['seconds_to_plan_listed']:.1f} s"
    )
    most, held = figures["bytes_per_unit_to_take_up"], figures["bytes_per_unit_taken_up"]
    memory = "unknown memory" if most is None else f"{held:,.0f} bytes a unit, {most:,.0f} meanwhile"
    console.print(
        f"the driver hands out and commits {figures['driver_units_per_second']:,.1f} units a second; "
        f"its record is taken up again in {figures['seconds_to_take_up']:.1f} s ({memory}), "
        f"closed in {figures['seconds_to_close']:.1f} s, "
        f"read by a later stage in {figures['seconds_to_read_closed']:.1f} s; "
        f"{figures['rankings_merged_per_second']:,.0f} units' rankings are merged in a second"
    )
    for stage in ("embed", "attribute"):
        console.print(
            f"{stage} on S3: {figures[f'{stage}_objects']:,.0f} objects, {figures[f'{stage}_writes']:,.0f} "
            f"writing and {figures[f'{stage}_reads']:,.0f} reading requests, "
            f"{figures[f'{stage}_request_cost']:,.2f} for them"
        )


def _show_throughput(figures: dict[str, Any], console: Console) -> None:
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


def show_search(figures: dict[str, Any]) -> None:
    """Print what the benchmark of the search found."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    table = Table(
        title=f"{figures['queries']:,} queries in {figures['rows']:,} x {figures['dimensions']} vectors"
    )
    table.add_column("contender")
    for heading in ("seconds", "rows / s", "GB / s", "peak memory"):
        table.add_column(heading, justify="right")
    for contender in figures["contenders"]:
        peak = contender["peak_memory_bytes"]
        table.add_row(
            contender["contender"],
            f"{contender['seconds']:,.2f}",
            f"{contender['rows_per_second']:,.0f}",
            f"{figures['bytes'] / contender['seconds'] / 1e9:,.2f}",
            "unknown" if peak is None else f"{peak / 2**20:,.0f} MiB",
        )
    console.print(table)
    ratios = ", ".join(
        f"{figures[f'ratio_to_{name}']:.2f} of {spoken(name)}"
        for name in ("read", "faiss_flat", "numpy", "copy")
        if figures[f"ratio_to_{name}"] is not None
    )
    console.print(
        f"our rate: {ratios}; {figures['seconds_over_read_and_products']:.2f} times the seconds of read and "
        f"products; {figures['device_name']}, {figures['threads']} threads, files "
        f"{'cold' if figures['cold'] else 'in the page cache'}"
    )
    for name in ("faiss_flat", "numpy"):
        if figures[f"equal_to_{name}"] is not None:
            console.print(f"places equal to those of {spoken(name)}: {figures[f'equal_to_{name}']:.4%}")


def spoken(measure: str) -> str:
    """A measure's name for a person."""
    name = {"r_precision": "R-precision", "mrr": "MRR"}.get(measure, measure)
    return name.replace("_at_", "@").replace("_", " ")


def show_known_answers(figures: dict[str, Any]) -> None:
    """Print what the benchmark of known answers found."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    table = Table(title="Known answers")
    table.add_column("method")
    for measure in figures["measures"]:
        table.add_column(spoken(measure), justify="right")
    for heading in ("lead", "gradients", "for one query", "seconds"):
        table.add_column(heading, justify="right")
    first = figures["measures"][0]
    for method in figures["methods"]:
        gradients, ahead = method["gradients"], method["leads"][first]
        table.add_row(
            method["method"],
            *(
                escape("{mean:.3f} [{low:.3f}, {high:.3f}]".format(**method["figures"][m]))
                for m in figures["measures"]
            ),
            f"{ahead['mean']:+.3f} ± {ahead['std']:.3f}",
            f"{gradients['sample'] + gradients['queries'] + gradients['rows']:,}",
            f"{gradients['rows_for_one_query']:,}",
            f"{method['seconds']:,.1f}",
        )
    console.print(table)
    test, training = figures["test"], figures["training"]
    found = "" if test["positive_rows"] is None else f", {test['positive_rows']:,} of them to be found"
    stand_for = test["rows_that_these_stand_for"]
    console.print(
        f"{test['queries']} test queries, {test['rows']:,} test rows"
        + (f" that stand for {stand_for:,}" if stand_for != test["rows"] else "")
        + f"{found}; learnt from "
        + " and ".join(
            f"{sum(splits.values()):,} {'rows' if s == 'pool' else s}" for s, splits in training.items()
        )
    )
    console.print(
        f"in brackets {figures['interval']}; "
        f"lead over the {figures['leads_over']} in {spoken(first)}; "
        f"seeds {figures['seeds']}, epochs kept {figures['chosen_epochs']}; "
        f"{figures['seconds_per_gradient']:.3f} s a gradient on {figures['device_name']}, "
        f"threads {figures['threads']}",
        markup=False,
    )
    left_out = {name.replace("_", " "): count for name, count in figures["left_out"].items() if count}
    if left_out:
        console.print("left out: " + ", ".join(f"{count:,} {name}" for name, count in left_out.items()))
