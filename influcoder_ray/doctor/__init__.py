"""Doctor: what works, what does not, and what to do about it."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from influcoder_ray.config import load_settings
from influcoder_ray.doctor.findings import Finding, show
from influcoder_ray.doctor.gradients import Subject, look_at_gradients
from influcoder_ray.doctor.machine import input_findings, machine_findings
from influcoder_ray.doctor.rows import BUILT_IN, first_examples
from influcoder_ray.errors import UserError
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec, SketchSpec
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.stores import refuse_unreachable

__all__ = ["examine", "examine_model"]


def examine(
    console: Console, config: str | None = None, *, rows: int = len(BUILT_IN), figure: Path | None = None
) -> bool:
    """Look at this machine and, with settings, at their inputs and their model's gradients.

    Prints a line for each thing; returns whether all of it works.

    Args:
        config: the settings file.
        rows: how many rows' gradients are looked at, half of them queries.
        figure: where to write the figure of sketch widths, with the table beside it.
    """
    sound = show(machine_findings(), console)
    if config is None:
        return sound
    try:
        settings = load_settings(config)
    except UserError as error:
        return show([Finding("settings", str(error), "mend the settings file")], console)
    sound &= show([Finding("settings", f"{config} is valid")], console)
    if not show(input_findings(settings), console):
        return False
    try:
        examples = [
            example
            for name, data, count in (
                ("queries", settings.queries, rows - rows // 2),
                ("corpus", settings.corpus, rows // 2),
            )
            for example in first_examples(data.files(name), data.columns, count, setting=f"{name}.path")
        ]
        whose = "the first of queries and corpus"
        subject = Subject(settings.model, settings.adapter, settings.sketch.width, settings.seed, whose)
        return look_at_gradients(subject, examples, figure, console) and sound
    except UserError as error:
        return show([Finding("gradients", "cannot be looked at", str(error))], console)


def examine_model(
    console: Console,
    model: str,
    data: Sequence[str] = (),
    *,
    rows: int = len(BUILT_IN),
    figure: Path | None = None,
) -> bool:
    """Look at the gradients of a model with a fresh adapter, and at nothing else.

    Args:
        model: a folder, a URI or a hub's name.
        data: files whose first usable rows are looked at, as many of each; none for those built in.
        rows, figure: as for `examine`.

    Raises:
        UserError: the model or the data cannot be used.
    """
    refuse_unreachable([("--model", model), *(("--data", path) for path in data)])
    examples = list(BUILT_IN)
    if data:
        shares = [(rows + place) // len(data) for place in range(len(data))][::-1]
        examples = [
            example
            for path, count in zip(data, shares, strict=True)
            for example in first_examples(
                find_data_files(path, setting="--data"), None, count, setting="--data"
            )
        ]
    whose = " and ".join(data) if data else "built-in texts (--data looks at yours)"
    subject = Subject(ModelSpec(path=model), AdapterSpec(), SketchSpec().width, 0, whose)
    return look_at_gradients(subject, examples, figure, console)
