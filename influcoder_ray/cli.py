"""The command line: one command a stage, and run, plan, explain, breakdown, index, demo, doctor."""

import os
import sys
import warnings
from collections.abc import Callable

import typer

from influcoder_ray import __version__
from influcoder_ray.commands.breaking_down import breakdown
from influcoder_ray.commands.choosing import filter_rows, select_rows
from influcoder_ray.commands.explaining import explain
from influcoder_ray.commands.indexing import index
from influcoder_ray.commands.planning import plan
from influcoder_ray.commands.proving import evaluate, validate
from influcoder_ray.commands.reporting import report
from influcoder_ray.commands.running import attribute, run, stage_command
from influcoder_ray.commands.trying import demo, doctor
from influcoder_ray.errors import RunFailed, Stopped, UserError
from influcoder_ray.report.texts import printable

app = typer.Typer(
    help="Which training data made a language model behave as it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _stage(name: str, help_text: str) -> None:
    example = f"Example: influcoder-ray {name} --config pipeline.yaml"
    app.command(name, help=f"{help_text}\n\n{example}")(stage_command(name))


# In this order they are listed: a run's stages first.
_stage("sample", "Choose queries and pool examples by content, and split them.")
_stage("sketch", "Compute every sampled example's gradient and its CountSketch.")
_stage("explore", "Choose further examples to learn from by a first student, and sketch them.")
_stage("distill", "Train the encoder to rank as the sketches do.")
_stage("embed", "Embed the full corpus with the trained encoder.")
app.command()(attribute)
_stage("rerank", "Order each query's best examples by exact influence.")
_stage("mark", "Split the influence of the examples that the report shows over their tokens.")
app.command("select")(select_rows)
app.command("filter")(filter_rows)
for command in (evaluate, validate, report, run, plan, explain, breakdown, index, demo, doctor):
    app.command()(command)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def exit_status_of(command: Callable[[], object]) -> int:
    """Run a command; its errors become one line on standard error and an exit status."""
    try:
        command()
    except (UserError, RunFailed) as error:
        print(f"influcoder-ray: {' '.join(printable(str(error)).split())}", file=sys.stderr)
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
