"""The commands `select` and `filter`: part of a corpus, chosen by influence."""

from collections.abc import Mapping
from typing import Annotated

import typer

from influcoder_ray.commands.options import Address, Config, Overrides, run_stages


def select_rows(
    config: Config,
    fraction: Annotated[
        float | None, typer.Option(help="How much: a share of the scored rows.", show_default=False)
    ] = None,
    count: Annotated[int | None, typer.Option(help="How much: so many rows.", show_default=False)] = None,
    tokens: Annotated[
        int | None, typer.Option(help="How much: so many of the causal LM's tokens.", show_default=False)
    ] = None,
    above: Annotated[
        float | None, typer.Option(help="How much: all rows with this score.", show_default=False)
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Score: mean, max or round_robin over queries.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Write a training subset for the queries' task, with all columns of the corpus: selected/.

    Options are settings of the group select; one amount is named. Another choice replaces the last one.

    Example: influcoder-ray select --config pipeline.yaml --fraction 0.1
    """
    amounts = {"fraction": fraction, "count": count, "tokens": tokens, "above": above}
    run_stages(config, _with_amount(overrides, "select", amounts, {"by": by}), address, "select")


def filter_rows(
    config: Config,
    fraction: Annotated[
        float | None, typer.Option(help="How much: the share expected to be unwanted.", show_default=False)
    ] = None,
    count: Annotated[int | None, typer.Option(help="How much: so many rows.", show_default=False)] = None,
    above: Annotated[
        float | None, typer.Option(help="How much: all rows with this score.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    address: Address = None,
) -> None:
    """Write the corpus without what most influences unwanted answers, and a review of what was taken out.

    Options are settings of the group filter; without any, filter.labels chooses the threshold.

    Example: influcoder-ray filter --config pipeline.yaml --fraction 0.03
    """
    amounts = {"fraction": fraction, "count": count, "above": above}
    run_stages(config, _with_amount(overrides, "filter", amounts, {}), address, "filter")


def _with_amount(
    overrides: list[str] | None,
    group: str,
    amounts: Mapping[str, float | None],
    others: Mapping[str, str | None],
) -> list[str]:
    """The overrides and a group's options; an amount on the command line takes the place of the file's."""
    given = {name: value for name, value in amounts.items() if value is not None}
    named: dict[str, float | str | None] = dict.fromkeys(amounts) if given else {}
    named |= given | {name: value for name, value in others.items() if value is not None}
    as_text = {name: "null" if value is None else str(value) for name, value in named.items()}
    return [*(f"{group}.{name}={text}" for name, text in as_text.items()), *(overrides or ())]
