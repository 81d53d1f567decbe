"""Options that several commands have, and what is done with them."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Config = Annotated[str, typer.Option("--config", help="Settings file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="A setting over the file's, as key.inner=value; repeatable.")
]
Output = Annotated[
    str, typer.Argument(metavar="OUTPUT", help="Output folder of a finished run, local or s3://.")
]
RunOverrides = Annotated[
    list[str] | None, typer.Option("--set", help="A setting over the run's, as key.inner=value.")
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write it here.", show_default=False)
]
Seeds = Annotated[
    int | None,
    typer.Option(help="Encoders to distil and compare, each with its own seed: evaluate.seeds.", min=1),
]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to join (host:port, ray://host:port or auto); else Ray starts here."),
]


def run_stages(config: str, overrides: list[str] | None, address: str | None, *stages: str) -> None:
    """Run the named stages of a settings file, all where none is named."""
    from influcoder_ray import pipeline
    from influcoder_ray.config import load_settings

    settings = load_settings(config, overrides or ())
    pipeline.run(settings, stages=stages or pipeline.STAGES, address=address, console=console())


def with_seeds(overrides: list[str] | None, seeds: int | None) -> list[str]:
    """The overrides, and the number of encoders to compare where it is given."""
    return [*(overrides or ()), *([] if seeds is None else [f"evaluate.seeds={seeds}"])]


def console() -> Console:
    """Where commands write: as wide as the terminal, and of one width where there is none.

    What stands in square brackets is part of a path or of a user's text, never a style.
    """
    return Console(width=None if sys.stdout.isatty() else 120, markup=False)
