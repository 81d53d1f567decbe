"""The command `influcoder-ray index`: its options, and nothing that takes time to import."""

from pathlib import Path
from typing import Annotated

import typer

from influcoder_ray.commands.options import Output


def index(
    output: Output,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where to put it, on this machine; OUTPUT/index.", show_default=False),
    ] = None,
    recall: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the truly best that a search is to find.")
    ] = 0.95,
) -> None:
    """Index a finished run's embeddings, so that `explain --index` searches them approximately, at once.

    One read of the embeddings. How much of the exact search's result it finds is measured with the run's own
    queries, and said. Needs FAISS: pip install 'influcoder-ray[index]'.

    Example: influcoder-ray index ./run
    """
    from influcoder_ray.explain.indexing import make_index

    make_index(output, folder, recall)
