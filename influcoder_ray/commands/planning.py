"""The command `plan`: what a run would take."""

from pathlib import Path
from typing import Annotated

import typer

from influcoder_ray.commands.options import Overrides, console
from influcoder_ray.errors import UserError


def plan(
    config: Annotated[str, typer.Argument(metavar="SETTINGS", help="Settings file (YAML).")],
    workers: Annotated[
        str, typer.Option(metavar="N,N,...", help="Numbers of workers for which the time is told.")
    ] = "1,4,16",
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of one worker an hour, in any currency.")
    ] = None,
    card: Annotated[
        str | None, typer.Option(help="Card of the workers, by its name or a part of it (H100).")
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(min=0.001, max=1, help="With --card: share of its peak that is reached; else assumed."),
    ] = None,
    measured: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Output folder of a finished run, as fast as which it goes."),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option(help="Measure this machine; done anyway where the weights are on it.")
    ] = False,
    calibration_seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure, about.")] = 60.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Say what each stage would take: rows, tokens, time, bytes, money. Runs none of them.

    Reads metadata and a few rows. Speeds are measured on this machine, or those of a card or a finished run.

    Example: influcoder-ray plan pipeline.yaml --card H100 --workers 1,4,16 --price 1.2
    """
    from influcoder_ray import planning
    from influcoder_ray.config import load_settings

    source = planning.SpeedSource(
        card=card,
        measured=measured,
        calibrate=calibrate,
        calibration_seconds=calibration_seconds,
        utilisation=utilisation,
    )
    planning.plan(
        load_settings(config, overrides or ()),
        source,
        workers=_numbers(workers, "--workers"),
        price_per_hour=price,
        console=console(),
        file=json_file,
    )


def _numbers(text: str, option: str) -> list[int]:
    """The whole numbers of a list with commas, each once, in order."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"{option}: {text!r} is no list of numbers from 1 on; give for example 1,4,16")
    return sorted({int(part) for part in parts})
