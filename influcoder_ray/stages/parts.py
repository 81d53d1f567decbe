"""The parts of an embedded corpus: its units as `embed` cut them, which later steps go through again.

What a step makes of a part is named by both, so that the next step finds it without being told.
"""

from collections.abc import Sequence
from dataclasses import replace

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.stages import embed
from influcoder_ray.stages.corpus import corpus_files
from influcoder_ray.tables.units import Unit, plan_units


def corpus_parts(settings: PipelineSettings) -> list[Unit]:
    """The units of the corpus that `embed` made a file of vectors of, in order.

    Raises:
        UserError: the corpus has not been embedded, or cannot be read.
    """
    return plan_units(
        corpus_files(settings),
        rows_per_unit=settings.embed.rows_per_unit,
        fingerprint=embed.state(settings.root).finished().digest,
        table=embed.CORPUS,
        joined="counted",
    )


def embedded_rows(settings: PipelineSettings) -> int:
    """How many rows of the corpus have a vector.

    Raises:
        UserError: none has.
    """
    rows = sum(file.rows for file in embed.state(settings.root).files(embed.CORPUS))
    if not rows:
        raise UserError(
            f"corpus.path: no row of {settings.corpus.path} has a vector, so that none can be chosen"
        )
    return rows


def step_units(parts: Sequence[Unit], step: str, fingerprint: str) -> list[Unit]:
    """The units of a step over the parts of the corpus."""
    return [replace(part, unit_id=step_id(part.unit_id, step, fingerprint), table="") for part in parts]


def step_id(part: str, step: str, fingerprint: str) -> str:
    """The id of the unit in which a step does a part."""
    return f"{part}-{step}-{fingerprint[:16]}"


def part_of(unit: Unit) -> str:
    """The part of the corpus that a step's unit is about."""
    return unit.unit_id.split("-", 1)[0]
