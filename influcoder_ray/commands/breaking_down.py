"""The command `influcoder-ray breakdown`: its options, and nothing that takes time to import."""

from pathlib import Path
from typing import Annotated

import typer

from influcoder_ray.commands.options import console


def breakdown(
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Output folder of a finished run, local or s3://.")
    ],
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
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write it here.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A setting over the run's, as key.inner=value.")
    ] = None,
) -> None:
    """Say from which parts of the corpus, such as sources or languages, the influence on all queries comes.

    Of a finished run's scores, which are read once, and the column. Starts no Ray.

    Example: influcoder-ray breakdown ./run --by meta.source
    """
    from influcoder_ray.explain.show_breakdown import tell

    tell(output, by, top / 100, json_file, overrides or (), console())
