"""The self-check of a model's gradients as a person reads it, with the figure and table of widths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from influcoder_ray.doctor.findings import Finding, say, show
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.gradients.adapter import find_targets
from influcoder_ray.gradients.budget import tokens_per_batch
from influcoder_ray.gradients.coverage import coverage
from influcoder_ray.gradients.dry_run import Unpredictable
from influcoder_ray.gradients.loading import load_config
from influcoder_ray.gradients.memory import predict_memory
from influcoder_ray.gradients.selfcheck import BATCH_TOLERANCE, LEAST_COSINE, SelfCheck, self_check
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.widths import ENOUGH_AGREEMENT, ENOUGH_ERROR_SHARE
from influcoder_ray.report.figures import as_file, sketch_widths
from influcoder_ray.stages.folders import at_hand

_MOST_FAULTS = 5
_HEADINGS = ("sketch width", "mean error", "predicted", "worst error", "rank agreement")


@dataclass(frozen=True)
class Subject:
    """What is looked at: a model with an adapter, the width of sketches that is set, and whose rows."""

    model: ModelSpec
    adapter: AdapterSpec
    width: int
    seed: int
    rows_from: str


def look_at_gradients(
    subject: Subject, examples: Sequence[Example], figure: Path | None, console: Console
) -> bool:
    """Run the self-check and print what it found; returns whether all of it is sound.

    Args:
        figure: where to write the figure of sketch widths (SVG); the table goes beside it (.md).

    Raises:
        UserError: as `self_check`; the device's memory does not suffice; the figure cannot be written.
    """
    if figure is not None and (figure.suffix != ".svg" or not figure.parent.is_dir()):
        raise UserError(f"--figure: {figure} is no .svg file in a folder that is there; give one")
    # Loading shows bars of its own, which would stand between the findings.
    logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, adapter = at_hand(subject.model), at_hand(subject.adapter)
    show(_before_loading(model, adapter, subject.width, device), console)
    try:
        with console.status(f"{len(examples)} gradients, in every way"):
            check = self_check(model, adapter, examples, seed=subject.seed, device=device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"self-check: {device} cannot hold the model in float32 with an example of {model.max_tokens:,} "
            "tokens; take a smaller model.max_tokens or a larger device"
        ) from error
    sound = show(_findings(check, subject, device), console)
    if check.widths:
        console.print(_table(check), highlight=False)
        say(f"      {_advice(check, subject.width)}", console)
        if figure is not None:
            _write(check, figure)
            say(f"      written: {figure} and {figure.with_suffix('.md')}", console)
    return sound


def _before_loading(
    model: ModelSpec, adapter: AdapterSpec, width: int, device: torch.device
) -> Iterator[Finding]:
    """What the config alone tells: the weights that the adapter sees, the memory that a batch needs."""
    config = load_config(model)
    covered = coverage(config, find_targets(config, adapter))
    yield Finding("adapter", covered.sentence() or "stands beside all of the model's weight matrices")
    tokens = tokens_per_batch(config, model, adapter, device)
    longest = min(tokens, model.max_tokens)
    try:
        needed = predict_memory(
            config,
            model,
            adapter,
            tokens=tokens,
            examples=max(1, tokens // longest),
            width=width,
            device=device,
        )
    except Unpredictable as reason:
        yield Finding("memory", f"cannot be predicted: {reason}")
        return
    parts = ", ".join(
        f"{name} {getattr(needed, field) / 2**20:,.0f}"
        for name, field in (
            ("weights", "weights_bytes"),
            ("activations", "activations_bytes"),
            ("logits", "logits_bytes"),
            ("adapter", "capture_bytes"),
            ("sketches", "sketch_bytes"),
            ("gradients on their way", "passing_bytes"),
        )
    )
    yield Finding(
        "memory",
        f"a batch of {tokens:,} tokens, all labelled, is predicted to need "
        f"{needed.total_bytes / 2**20:,.0f} MiB of {device} in {model.dtype} ({parts})",
    )


def widths_as_markdown(check: SelfCheck) -> str:
    """The table of sketch widths in Markdown."""
    lines = [_HEADINGS, ("---:",) * len(_HEADINGS), *_cells(check)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def widths_as_svg(check: SelfCheck) -> str:
    """The figure of sketch widths as a file of its own.

    Raises:
        ValueError: the check has no widths.
    """
    label = (
        "Mean absolute error of sketched against exact cosines, and their rank agreement, by sketch width; "
        f"{len(check.exact_cosines):,} pairs of {len(check.example_ids)} examples"
    )
    svg = sketch_widths(
        [w.width for w in check.widths],
        [w.mean_error for w in check.widths],
        [w.predicted_error for w in check.widths],
        [w.rank_agreement for w in check.widths],
        label,
    )
    if svg is None:
        raise ValueError("there are no widths to draw")
    return as_file(svg)


def _findings(check: SelfCheck, subject: Subject, device: torch.device) -> Iterator[Finding]:
    yield Finding(
        "rows",
        f"{len(check.tokens)} of {min(check.tokens):,} to {max(check.tokens):,} tokens on {device}: "
        f"{subject.rows_from}",
    )
    for example_id, reason in check.left_out:
        yield Finding("left out", f"{example_id}: {reason}")
    unsound = sum(fault.kind == "gradient" for fault in check.faults)
    yield Finding(
        "gradients",
        f"{check.gradient_size:,} numbers each; "
        + (f"{unsound} of {len(check.tokens)} are of no use" if unsound else "all finite and none zero"),
        _remedy(check, "gradient"),
    )
    if check.idle:
        more = f" and {len(check.idle) - _MOST_FAULTS} more" if len(check.idle) > _MOST_FAULTS else ""
        yield Finding(
            "idle modules",
            f"{len(check.idle)} adapted modules have gradients of zero: "
            f"{', '.join(check.idle[:_MOST_FAULTS])}{more} (no text passes through "
            "them, or their weights are used without them)",
        )
    for dtype, errors in check.batch_errors.items():
        if not np.isnan(errors).all():
            yield Finding(
                f"alone against in a batch, {dtype}",
                f"a gradient differs by {np.nanmax(errors):.1e} of its length at worst (the batch is "
                f"{check.layout}; up to {BATCH_TOLERANCE[dtype]:g} is taken for rounding)",
                _remedy(check, "batch", dtype),
            )
    for dtype, cosines in check.cosines.items():
        if not np.isnan(cosines).all():
            yield Finding(
                f"{dtype} against float32",
                f"a gradient's cosine with itself is {np.nanmean(cosines):.4f} on average, "
                f"{np.nanmin(cosines):.4f} at worst ({LEAST_COSINE:g} is enough to use {dtype})",
                _remedy(check, "precision", dtype),
            )
    if check.widths:
        yield Finding(
            "sketched against exact cosines",
            f"{len(check.exact_cosines):,} pairs, whose exact cosines have a standard deviation of "
            f"{check.spread:.4f}",
            _remedy(check, "sketch"),
        )


def _remedy(check: SelfCheck, kind: str, dtype: str = "") -> str | None:
    """The first faults of a kind, and what to do about them; None where there are none."""
    faults = [fault for fault in check.faults if (fault.kind, fault.dtype) == (kind, dtype)]
    if not faults:
        return None
    more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
    remedies = dict.fromkeys(fault.remedy for fault in faults)
    return f"{'; '.join(fault.what for fault in faults[:_MOST_FAULTS])}{more}: {'; '.join(remedies)}"


def _cells(check: SelfCheck) -> list[tuple[str, ...]]:
    return [
        (
            f"{w.width:,}",
            f"{w.mean_error:.5f}",
            f"{w.predicted_error:.5f}",
            f"{w.worst_error:.4f}",
            f"{w.rank_agreement:.4f}",
        )
        for w in check.widths
    ]


def _table(check: SelfCheck) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for heading in ("    ", *_HEADINGS):
        table.add_column(heading, justify="right")
    for cells in _cells(check):
        table.add_row("", *cells)
    return table


def _advice(check: SelfCheck, width: int) -> str:
    rule = (
        f"cosines of sketches order the pairs as exact ones do (rank agreement of at least "
        f"{ENOUGH_AGREEMENT:g}) and err on average by at most {ENOUGH_ERROR_SHARE:g} of the exact ones' "
        "standard deviation"
    )
    if check.advised_width is None:
        return f"no width is enough here, where one is from which on {rule}; take the widest, or other rows"
    return (
        f"advised sketch.width: {check.advised_width:,}, the smallest from which on {rule}; "
        f"set or by default it is {width:,}"
    )


def _write(check: SelfCheck, figure: Path) -> None:
    try:
        figure.write_text(widths_as_svg(check), encoding="utf-8")
        figure.with_suffix(".md").write_text(widths_as_markdown(check), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--figure: {figure} cannot be written ({error.strerror}); give another") from error
