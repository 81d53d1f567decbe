"""The page that stands for the report while the run goes on: what is done, and how far the rest is."""

from collections.abc import Sequence

from influcoder_ray.report.blocks import Block, Cell, Note, Page, Prose, Row, Section, Table
from influcoder_ray.report.texts import one_line
from influcoder_ray.report.wording import MISSING, count, duration
from influcoder_ray.tables.progress import StageProgress

REFRESH_SECONDS = 5
COLUMNS = ("State", "Time", "Units", "Rows", "Rows set aside")


def progress_page(
    title: str,
    place: str,
    stages: Sequence[StageProgress],
    *,
    unchanged_seconds: float,
    trouble: str = "",
) -> Page:
    """The run so far.

    Args:
        title: the report's.
        place: the output folder.
        unchanged_seconds: for how long nothing has been added to the folder.
        trouble: why there is no report although every stage is done; empty where some are not.
    """
    done = sum(stage.finished for stage in stages)
    what = f"{count(done)} of {count(len(stages))} stages are done. The report comes when all are."
    blocks: list[Block] = [Prose(one_line(trouble, 600) or what)]
    blocks.append(
        Table(
            label="Stages of the run",
            corner="Stage",
            columns=COLUMNS,
            rows=tuple(_row(stage) for stage in stages),
            stacked=True,
        )
    )
    blocks.append(
        Note(
            f"Units are counted as soon as they are written. Nothing new has been seen for "
            f"{duration(unchanged_seconds)}. This page loads itself again every {REFRESH_SECONDS} seconds."
        )
    )
    return Page(
        title=one_line(title, 160) or "Attribution report",
        byline=f"The run in {one_line(place, 300)} goes on.",
        sections=(Section("progress", "Progress", "How far the run is", tuple(blocks)),),
        footer="Served by influcoder-ray on this machine alone.",
        refresh_seconds=REFRESH_SECONDS,
    )


def _row(stage: StageProgress) -> Row:
    state = "done" if stage.finished else "under way" if stage.begun else "waiting"
    known = stage.begun
    return Row(
        stage.stage,
        (
            Cell(state),
            Cell(duration(stage.seconds)),
            Cell(count(stage.units) if known else MISSING),
            Cell(count(stage.rows) if known else MISSING),
            Cell(count(stage.rows_quarantined) if known else MISSING),
        ),
    )
