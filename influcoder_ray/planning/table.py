"""The estimate as a table for a person, and as JSON for a program."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from influcoder_ray.planning.arithmetic import Estimate
from influcoder_ray.planning.requests import store_use
from influcoder_ray.planning.work import Work

_MINUTE, _HOUR = 60, 3600


def show(estimate: Estimate, workers: Sequence[int], rests_on: Sequence[str], console: Console) -> None:
    """Print a line for each stage, their sums, and what they rest on."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    headings = ["stage", "units", "rows", "tokens", "FLOPs", "device time"]
    headings += [f"on {count:,}" for count in workers] + ["written"]
    priced = estimate.price_per_hour is not None
    for heading in (*headings, *(["money"] if priced else [])):
        table.add_column(heading, justify="left" if heading == "stage" else "right", no_wrap=True)
    for stage in estimate.stages:
        work = stage.work
        table.add_row(
            work.stage,
            f"{work.units:,}",
            f"{'' if work.rows_counted else '~'}{_count(work.rows)}",
            _count(work.tokens),
            _flops(work.flops),
            duration(stage.device_seconds),
            *(duration(stage.wall_seconds[count]) for count in workers),
            _bytes(work.bytes_written),
            *([_money(stage.cost)] if priced else []),
        )
    table.add_row(
        "all",
        *[""] * 3,
        _flops(estimate.flops),
        duration(estimate.device_seconds),
        *(duration(estimate.wall_seconds(count)) for count in workers),
        _bytes(estimate.bytes_written),
        *([_money(estimate.cost)] if priced else []),
    )
    console.print(table, highlight=False)
    if priced:
        held = ", ".join(f"{_money(estimate.cost_with(count))} on {count:,}" for count in workers)
        _say(f"Workers that wait for the last unit of a stage are paid for too: {held}.", console)
    for stage in estimate.stages:
        use = store_use(stage.work.stage, stage.work.units)
        if use is not None:
            _say(
                f"On S3 {stage.work.stage} leaves {use.objects:,} objects, with at least "
                f"{use.requests.writes:,} requests that write and {use.requests.reads:,} that read.",
                console,
            )
    _say("What this rests on:", console)
    for line in rests_on:
        _say(f"  {line}", console)


def as_json(estimate: Estimate, workers: Sequence[int], rests_on: Sequence[str]) -> dict[str, Any]:
    """The estimate by the names of what it says, units in them."""
    return {
        "stages": {
            stage.work.stage: {
                "units": stage.work.units,
                "rows": stage.work.rows,
                "rows_counted": stage.work.rows_counted,
                "tokens": stage.work.tokens,
                "flops": stage.work.flops,
                "device_hours": stage.device_seconds / _HOUR,
                "wall_seconds": {str(count): stage.wall_seconds[count] for count in workers},
                "bytes_written": stage.work.bytes_written,
                "cost": stage.cost,
                **_store(stage.work),
            }
            for stage in estimate.stages
        },
        "device_hours": estimate.device_seconds / _HOUR,
        "wall_seconds": {str(count): estimate.wall_seconds(count) for count in workers},
        "bytes_written": estimate.bytes_written,
        "price_per_hour": estimate.price_per_hour,
        "cost": estimate.cost,
        "cost_with_waiting_workers": {str(count): estimate.cost_with(count) for count in workers},
        "rests_on": list(rests_on),
    }


def _store(work: Work) -> dict[str, int | None]:
    use = store_use(work.stage, work.units)
    return {
        "objects": None if use is None else use.objects,
        "write_requests": None if use is None else use.requests.writes,
        "read_requests": None if use is None else use.requests.reads,
    }


def duration(seconds: float) -> str:
    """A time in the unit in which it is two or more: seconds, minutes, hours."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:,.1f} h"


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _flops(number: float) -> str:
    return f"{number:.1e}" if number else ""


def _money(cost: float | None) -> str:
    return "" if cost is None else f"{cost:,.2f}"


def _bytes(size_bytes: int) -> str:
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size_bytes >= size:
            return f"{size_bytes / size:,.1f} {unit}"
    return f"{size_bytes / 1024:,.0f} KiB"


def _say(line: str, console: Console) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
