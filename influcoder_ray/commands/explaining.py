"""The command `influcoder-ray explain`: its options, and nothing that takes time to import."""

from pathlib import Path
from typing import Annotated

import typer

from influcoder_ray.commands.options import JsonFile, Output, RunOverrides


def explain(
    output: Output,
    query: Annotated[str | None, typer.Option(help="The prompt.", show_default=False)] = None,
    response: Annotated[
        str | None, typer.Option(help="What to explain; else the model's own answer.", show_default=False)
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Raw text, in place of --query.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(min=1, metavar="K", help="Examples to show at either end.")] = 5,
    rerank: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Order the N best, and the N most similar texts where kept, by exact influence.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Mark the tokens that carry the influence, exactly.")
    ] = False,
    index: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Search this index of the run's embeddings.", show_default=False),
    ] = None,
    json_file: JsonFile = None,
    overrides: RunOverrides = None,
) -> None:
    """Say which examples of a finished run's corpus push the model most, and least, towards an answer.

    From the embeddings, in seconds; --rerank and --tokens take gradients of the model. Starts no Ray.

    Example: influcoder-ray explain ./run --query "Who wrote Emma?" --rerank 50
    """
    from influcoder_ray.explain.answer import Request, answer

    answer(
        Request(
            output=output,
            query=query,
            response=response,
            text=text,
            top=top,
            rerank=rerank,
            tokens=tokens,
            json_file=json_file,
            overrides=tuple(overrides or ()),
            index=index,
        )
    )
