"""Plan: what a run would take, told by metadata and a few rows, before it is paid for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.utils import logging

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.json_file import refuse_folder, write_json
from influcoder_ray.pipeline import wanted_stages
from influcoder_ray.planning.arithmetic import estimate
from influcoder_ray.planning.calibration import calibrate, calibrate_cpu
from influcoder_ray.planning.cards import find_card
from influcoder_ray.planning.counts import Counts
from influcoder_ray.planning.data import survey
from influcoder_ray.planning.lengths import Models
from influcoder_ray.planning.sources import card_speeds, finished_run, measured_speeds
from influcoder_ray.planning.speed import Speeds
from influcoder_ray.planning.table import as_json, show
from influcoder_ray.spec import Spec

__all__ = ["SpeedSource", "check", "count", "plan", "speeds"]

CALIBRATION_SECONDS = 60.0


class SpeedSource(Spec):
    """Where speeds come from: a card, a finished run, or, where neither is named, this machine.

    Attributes:
        calibrate: measure here also where weights lie elsewhere, and have to be fetched.
        calibration_seconds: how long, about.
        utilisation: the share of the card's peak; what is assumed if None.
    """

    card: str | None = None
    measured: str | None = None
    calibrate: bool = False
    calibration_seconds: float = CALIBRATION_SECONDS
    utilisation: float | None = None


def plan(
    settings: PipelineSettings,
    source: SpeedSource,
    *,
    workers: Sequence[int],
    price_per_hour: float | None,
    console: Console,
    file: Path | None = None,
) -> Mapping[str, Any]:
    """Print what each stage that the settings want would take; returns the same by names.

    Writes nothing but `file`, and of the data reads footers and a few rows.

    Args:
        workers: the numbers of workers for which the time is told.
        price_per_hour: of one worker.
        file: where to write the same as JSON.

    Raises:
        UserError: settings, data, models or options cannot be used.
    """
    refuse_folder(file)
    # Loading shows bars of its own.
    logging.disable_progress_bar()
    check(settings, source)
    with console.status("Looking at data and models"):
        counts = count(settings)
        works = counts.works()
    with console.status("Measuring this machine" if source.measured is None else "Reading the finished run"):
        found = speeds(counts, source)
    estimated = estimate(works, found, workers=workers, price_per_hour=price_per_hour)
    rests_on = [f"{w.stage}: {sentence}" for w in works for sentence in w.rests_on]
    rests_on += [
        f"{stage}: not counted; it reads the vectors, and the corpus again"
        for stage in wanted_stages(settings)
        if stage in ("select", "filter")
    ]
    rests_on += [*found.rests_on, "units of a stage are taken to be equally large"]
    show(estimated, workers, rests_on, console)
    figures = as_json(estimated, workers, rests_on)
    if file is not None:
        write_json(file, figures)
    return figures


def count(settings: PipelineSettings) -> Counts:
    """What stages would do.

    Raises:
        UserError: the data or the models cannot be used.
    """
    corpus, queries = (
        survey(data, setting=name)
        for name, data in (("corpus", settings.corpus), ("queries", settings.queries))
    )
    return Counts(settings, Models(settings), corpus, queries)


def speeds(counts: Counts, source: SpeedSource) -> Speeds:
    """How fast it would go.

    Raises:
        UserError: as `check`; the measured run is none.
    """
    settings = counts.settings
    check(settings, source)
    if source.measured is not None:
        run, totals = finished_run(source.measured)
        return measured_speeds(source.measured, run, count(run).works(), totals)
    search = {"queries": counts.sampled_queries, "dimensions": counts.dimensions}
    if source.card is not None:
        bare = calibrate_cpu(settings, counts.corpus, seconds=source.calibration_seconds, **search)
        return card_speeds(settings, source.card, bare, utilisation=source.utilisation)
    return calibrate(settings, counts.corpus, seconds=source.calibration_seconds, **search)


def check(settings: PipelineSettings, source: SpeedSource) -> None:
    """Refuse a source of speeds that is none; reads nothing.

    Raises:
        UserError: more than one is named; the card is not known; none is named and the weights are not on
            this machine.
    """
    options = {"--card": source.card, "--measured": source.measured, "--calibrate": source.calibrate}
    named = [option for option, given in options.items() if given]
    if len(named) > 1:
        raise UserError(f"{named[1]}: {named[0]} is given as well; give one of the two")
    if source.utilisation is not None and source.card is None:
        raise UserError("--utilisation: is a share of a card's peak; give --card as well")
    if source.card is not None:
        find_card(source.card, settings.model.dtype)
    paths = {"model.path": settings.model.path, "encoder.path": settings.encoder.path}
    elsewhere = [setting for setting, path in paths.items() if not Path(path).exists()]
    if elsewhere and not named:
        raise UserError(
            f"{elsewhere[0]}: {paths[elsewhere[0]]} is not on this machine, so that nothing can be measured; "
            "give --card NAME, --measured RUN, or --calibrate to fetch it"
        )
