"""The commands `evaluate` and `validate`: how far attributions can be trusted."""

from typing import Annotated

import typer

from influcoder_ray.commands.options import Address, Config, Overrides, Seeds, run_stages, with_seeds


def evaluate(
    config: Config, seeds: Seeds = None, overrides: Overrides = None, address: Address = None
) -> None:
    """Compare the encoder with exact influence on the test split, beside its rivals.

    With --seeds K, K - 1 more encoders are distilled, and the encoder's figures have a spread over training
    seeds; those that are there from an earlier call are kept.

    Example: influcoder-ray evaluate --config pipeline.yaml --seeds 3
    """
    run_stages(config, with_seeds(overrides, seeds), address, "evaluate")


def validate(
    config: Config,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=0, help="Fine-tunes of each kind, each with its own seed: validate.seeds.", show_default=False
        ),
    ] = None,
    subsets: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Random subsets for the linear datamodelling score: validate.subsets.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Prove the attributions: fine-tune with and without what influence points at, beside random examples.

    Where neither options nor settings say how much, 3 seeds and 16 subsets. More of either can be asked for
    later: fine-tunes that are done are kept.

    Example: influcoder-ray validate --config pipeline.yaml --seeds 5
    """
    from influcoder_ray.config import load_settings
    from influcoder_ray.stages.validate import why_left_out

    asked = {"seeds": seeds, "subsets": subsets}
    wanted = [*(overrides or ()), *(f"validate.{n}={v}" for n, v in asked.items() if v is not None)]
    if asked == {"seeds": None, "subsets": None} and why_left_out(load_settings(config, wanted)):
        wanted += ["validate.seeds=3", "validate.subsets=16"]
    run_stages(config, wanted, address, "validate")
