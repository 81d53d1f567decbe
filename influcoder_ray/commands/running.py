"""The commands `run` and `attribute`, and those of stages that have no options of their own."""

from collections.abc import Callable
from typing import Annotated

import typer

from influcoder_ray.commands.options import Address, Config, Overrides, Seeds, run_stages, with_seeds


def stage_command(stage: str) -> Callable[..., None]:
    """The command of a stage without options of its own."""

    def command(config: Config, overrides: Overrides = None, address: Address = None) -> None:
        run_stages(config, overrides, address, stage)

    return command


def attribute(
    config: Config,
    rerank: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Also order the N best examples of each query by exact influence (the setting "
            "rerank.candidates).",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Find the most influential examples for each query.

    Example: influcoder-ray attribute --config pipeline.yaml --rerank 50
    """
    if rerank is None:
        run_stages(config, overrides, address, "attribute")
    else:
        wanted = [*(overrides or ()), f"rerank.candidates={rerank}"]
        run_stages(config, wanted, address, "attribute", "rerank")


def run(
    config: Annotated[str, typer.Argument(metavar="SETTINGS", help="Settings file (YAML).")],
    overrides: Overrides = None,
    seeds: Seeds = None,
    address: Address = None,
) -> None:
    """Run all stages, skipping what is done.

    Example: influcoder-ray run pipeline.yaml --set sketch.width=8192
    """
    run_stages(config, with_seeds(overrides, seeds), address)
