"""The stages in order: what is done, what is missing, what a run adds."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from influcoder_ray.config import PipelineSettings, settings_from
from influcoder_ray.errors import UserError
from influcoder_ray.stopping import stoppable
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.stores import refuse_unreachable

if TYPE_CHECKING:
    from influcoder_ray.stages.display import Display

STAGES = (
    *("sample", "sketch", "explore", "distill", "embed", "attribute", "rerank", "select", "filter"),
    *("evaluate", "validate", "mark", "report"),
)
SUMMARY, SETTINGS = "run_summary.json", "settings.yaml"
_WITHOUT_RAY = ("report",)


def run(
    settings: PipelineSettings,
    *,
    stages: Sequence[str] = STAGES,
    address: str | None = None,
    console: Console | None = None,
    expected_seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Run stages in order, skipping what is done, and write `settings.yaml` and `run_summary.json`.

    Stages that the settings leave out are as if they were not named.

    Everything that a user can have got wrong is looked for before anything is written.

    Args:
        stages: names out of `STAGES`, in their order.
        address: the Ray cluster to join; without one, that of the submitted job, else one started here.
        expected_seconds: what each stage is expected to take, where that is known.

    Returns:
        The summary: for each stage its totals and whether it was done before.

    Raises:
        UserError: a setting or an input cannot be used, or belongs to another run.
        RunFailed: a stage did not finish.
        Stopped: the process was told to end.
    """
    from influcoder_ray.stages.display import Display

    console = console or Console()
    display = Display(console, expected_seconds)
    left_out = [why for stage in stages if (why := _why_left_out(settings, stage))]
    every = wanted_stages(settings)
    stages = [stage for stage in stages if stage in every]
    missing = _missing(settings, stages)
    if not missing:
        done = f"{', '.join(stages)} in {settings.root} are done with these settings"
        display.say(f"Nothing to do: {done if stages else '; '.join(left_out)}")
        return _summary(settings)
    for stage in missing:
        check: Callable[[PipelineSettings], None] | None = getattr(_module(stage), "check", None)
        if check is not None:
            check(settings)
    _refuse_unwritable(settings)
    if any(stage not in _WITHOUT_RAY for stage in missing):
        from influcoder_ray.stages.cluster import connect, refuse_guesswork

        connect(address)
        refuse_guesswork(settings.workers)
    (settings.root / SETTINGS).write_whole(settings.to_yaml().encode())
    for stage in stages[: -len(missing)]:
        display.say(f"{stage}: done already")
    with stoppable():
        for stage in missing:
            _run_stage(settings, stage, every, display)
    return _summary(settings)


def _run_stage(settings: PipelineSettings, stage: str, every: Sequence[str], display: "Display") -> None:
    """Do what is missing of a stage, one of `every` that is wanted."""
    started = time.monotonic()
    plan = _module(stage).plan(settings)
    plan.refuse_other()
    if plan.is_done():
        display.say(f"{stage}: done already")
        return
    display.say(f"{stage} ({every.index(stage) + 1} of {len(every)})")
    manifests = plan.run(display)
    totals = plan.finish(settings, manifests, time.monotonic() - started)
    display.say(f"  {_closing_line(stage, totals)}")
    (settings.root / SUMMARY).write_whole(json.dumps(_summary(settings), indent=2).encode())


def serve_report(settings: PipelineSettings, port: int, ready: Callable[[str], object]) -> None:
    """Show the report to this machine's browsers while the run goes on, until Ctrl-C; needs no Ray.

    Args:
        port: 0 for a free one.
        ready: told the address once it can be opened.

    Raises:
        UserError: the port cannot be had, or an address on S3 cannot be reached.
    """
    from influcoder_ray.report.serving import serve
    from influcoder_ray.stages.watching import WatchedRun

    refuse_unreachable(settings.addresses.items())
    before = [stage for stage in wanted_stages(settings) if stage not in _WITHOUT_RAY]
    serve(WatchedRun(settings, before), port, ready)


def settings_of_run(
    folder: str, overrides: Sequence[str] = (), *, option: str = "output"
) -> PipelineSettings:
    """The settings of the run in an output folder, whatever the folder was called when it was made.

    Args:
        overrides: settings over the run's own, as key.inner=value.
        option: what named the folder, for the error's first words.

    Raises:
        UserError: there is no run, or its settings cannot be read.
    """
    root = Place(folder).absolute()
    refuse_unreachable([(option, root.uri)])
    if not (root / SETTINGS).exists():
        raise UserError(f"{option}: {root} holds no {SETTINGS}; give the output folder of a finished run")
    try:
        fields = yaml.safe_load((root / SETTINGS).read_bytes())
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{option}: what {root} holds cannot be read ({reason}); run it again") from error
    if not isinstance(fields, dict):
        raise UserError(f"{option}: what {root} holds is no run; give the output folder of a finished run")
    settings = settings_from(fields, source=f"{root / SETTINGS}", overrides=overrides)
    return settings.model_copy(update={"output": root.uri})


def status(settings: PipelineSettings) -> dict[str, bool]:
    """Whether each stage is done with these settings."""
    stages = wanted_stages(settings)
    missing = _missing(settings, stages)
    return {stage: stage not in missing for stage in stages}


def wanted_stages(settings: PipelineSettings) -> list[str]:
    """The stages that the settings do not leave out, in order."""
    return [stage for stage in STAGES if not _why_left_out(settings, stage)]


def _why_left_out(settings: PipelineSettings, stage: str) -> str:
    """What in the settings leaves a stage out; empty where it is wanted."""
    reason: Callable[[PipelineSettings], str] | None = getattr(_module(stage), "why_left_out", None)
    return "" if reason is None else reason(settings)


def _missing(settings: PipelineSettings, stages: Sequence[str]) -> list[str]:
    """The stages from the first one on that is not done: each one's input is the last one's output.

    Raises:
        UserError: a folder holds another run's results, or an address on S3 cannot be reached.
    """
    refuse_unreachable(settings.addresses.items())
    for number, stage in enumerate(stages):
        plan = _module(stage).plan(settings)
        plan.refuse_other()
        if not plan.is_done():
            return list(stages[number:])
    return []


def _module(stage: str) -> Any:
    return import_module(f"influcoder_ray.stages.{stage}")


def _summary(settings: PipelineSettings) -> dict[str, Any]:
    totals = {stage: _module(stage).state(settings.root).totals() for stage in STAGES}
    wanted = wanted_stages(settings)
    return {
        "output": settings.output,
        "stages": {stage: found for stage, found in totals.items() if found or stage in wanted},
    }


def _refuse_unwritable(settings: PipelineSettings) -> None:
    probe = settings.root / "_state" / "writable"
    try:
        probe.write_whole(b"")
        probe.remove()
    except (OSError, PermissionError) as error:
        raise UserError(
            f"output: {settings.root} cannot be written ({error}); give a folder that can"
        ) from error


def _closing_line(stage: str, totals: Mapping[str, float]) -> str:
    parts = [f"{stage}: {totals['wall_seconds']:.1f} s"]
    if totals["rows_in"]:
        parts.append(f"{totals['rows_out']:,.0f} of {totals['rows_in']:,.0f} rows")
    if totals["rows_quarantined"]:
        parts.append(f"{totals['rows_quarantined']:,.0f} quarantined")
    if totals.get("positions"):
        parts.append(f"{1 - totals['tokens'] / totals['positions']:.1%} padding")
    if totals.get("tokens") and totals["compute_seconds"]:
        parts.append(f"{totals['tokens'] / totals['compute_seconds']:,.0f} tokens/s a worker")
    elif totals["rows_out"] and totals["compute_seconds"]:
        parts.append(f"{totals['rows_out'] / totals['compute_seconds']:,.0f} rows/s a worker")
    return ", ".join(parts)
