"""The command `influcoder-ray breakdown`: its options, and nothing that takes time to import."""

from typing import Annotated

import typer

from influcoder_ray.commands.options import JsonFile, Output, RunOverrides, console


def breakdown(
    output: Output,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="A column of the corpus, or a field within one (meta.source); the files if left out.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[
        float, typer.Option(metavar="PERCENT", help="Per cent of the corpus that counts as the top.")
    ] = 1.0,
    json_file: JsonFile = None,
    overrides: RunOverrides = None,
) -> None:
    """Say from which parts of the corpus, such as sources or languages, the influence on all queries comes.

    Of a finished run's scores and the column, which are read through. Starts no Ray.

    Example: influcoder-ray breakdown ./run --by meta.source
    """
    from influcoder_ray.explain.show_breakdown import tell

    tell(output, by, top / 100, json_file, overrides or (), console())
