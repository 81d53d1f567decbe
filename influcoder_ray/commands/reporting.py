"""The command `report`: the page that shows a run, as a file or served."""

from typing import Annotated

import typer

from influcoder_ray.commands.options import Address, Config, Overrides, console, run_stages
from influcoder_ray.errors import UserError

_PORT = 8480


def report(
    config: Config,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Show it on 127.0.0.1 instead, while the run goes on; write nothing."),
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help=f"With --serve: the port, 0 for a free one; else {_PORT}.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Write report.html from what the other stages left.

    With --serve it is shown to this machine's browsers, and made anew when the run has come further; until
    there is enough for it, a page says which stages are done. Ctrl-C ends it.

    Example: influcoder-ray report --config pipeline.yaml --serve
    """
    if not serve:
        if port is not None:
            raise UserError("--port: goes with --serve")
        run_stages(config, overrides, address, "report")
        return
    from influcoder_ray import pipeline
    from influcoder_ray.config import load_settings

    terminal = console()
    pipeline.serve_report(
        load_settings(config, overrides or ()),
        _PORT if port is None else port,
        lambda address: terminal.print(f"The report is at {address} (Ctrl-C ends it)", highlight=False),
    )
