"""Breakdown: from which parts of a corpus the influence on a run's queries comes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from influcoder_ray.attribution.selection import BINS, bar_of, score_bins
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.explain.tables import BREAKDOWN
from influcoder_ray.stages import attribute, sample
from influcoder_ray.stages.aims import as_text
from influcoder_ray.stages.corpus import corpus_files
from influcoder_ray.tables import schemas
from influcoder_ray.tables.datafiles import DataFile, require_columns
from influcoder_ray.tables.fields import path_in, type_at
from influcoder_ray.tables.lookup import rows_at
from influcoder_ray.tables.state import StageState
from influcoder_ray.tables.stores import refuse_unreachable

# What rows are called that have nothing in the column.
NOTHING = "(nothing)"
# More are no parts of a corpus but its rows.
_MOST_VALUES = 10_000


def breakdown(settings: PipelineSettings, by: str | None = None, top: float = 0.01) -> pa.Table:
    """How much of a finished run's influence on all of its queries each part of the corpus has.

    The scores are read twice, for which of them are the top and for whose they are, and the column once; what
    is held are the parts and one unit's rows.

    Args:
        by: a column of the corpus, or a field within one (`meta.source`), whose values are the parts; the
            files if None.
        top: the share of the corpus, in (0, 1], that counts as the most influential.

    Returns:
        A row for each part, as `tables.BREAKDOWN` has it, those with the most of the top first.

    Raises:
        UserError: the run is not attributed, its corpus is another by now, or there is no such column; or it
            has more values than parts of a corpus would.
    """
    if not 0 < top <= 1:
        raise UserError(f"--top: {100 * top:g} per cent; give more than 0 and at most 100")
    record = attribute.state(settings.root)
    record.finished()
    parts: _Parts = _Files() if by is None else _Column(settings, by)
    attributed = _times_attributed(record)
    bar = _bar(record, top)
    tallies: dict[str, _Tally] = {}
    for rows in record.read_each(attribute.GROUP, schemas.GROUP_INFLUENCE, ["source", "score"]):
        sources, scores = rows["source"].combine_chunks(), rows["score"].to_numpy()
        places = pc.index_in(sources, value_set=attributed.sources)
        times = attributed.times[pc.fill_null(places, len(attributed.sources)).to_numpy()]
        values = parts.of(sources).dictionary_encode()
        counted = _counted(values.indices.to_numpy(), len(values.dictionary), scores, bar, times)
        for value, own in zip(values.dictionary.to_pylist(), counted, strict=True):
            tallies.setdefault(value, _Tally()).add(own)
        if by is not None and len(tallies) > _MOST_VALUES:
            raise UserError(
                f"--by: {by!r} has more than {_MOST_VALUES:,} values; name a column that says of which kind, "
                "or from where, a row is"
            )
    if by is not None and set(tallies) == {NOTHING}:
        raise UserError(f"--by: no row of the corpus has a word or a number in {by!r}; name another column")
    return _table(tallies)


@dataclass
class _Tally:
    """What is counted of a part."""

    rows: int = 0
    score: float = 0.0
    top_rows: int = 0
    attributions: int = 0

    def add(self, other: "_Tally") -> None:
        self.rows += other.rows
        self.score += other.score
        self.top_rows += other.top_rows
        self.attributions += other.attributions


@dataclass(frozen=True)
class _Attributed:
    """The rows that are among the best of some query, and of how many."""

    sources: pa.Array
    times: npt.NDArray[np.int64]
    """One more than there are sources: 0, of all other rows."""


class _Parts(Protocol):
    """Tells of which part of the corpus rows are."""

    def of(self, sources: pa.StringArray) -> pa.StringArray:
        """The part (N,) of the rows at the places (N,)."""


class _Files:
    """Each file is a part."""

    def of(self, sources: pa.StringArray) -> pa.StringArray:
        return pc.replace_substring_regex(sources, r":\d+$", "")


class _Column:
    """What a column of the corpus says is a part.

    Raises:
        UserError: the corpus is another than it was, or has no such column of words or numbers.
    """

    def __init__(self, settings: PipelineSettings, by: str) -> None:
        refuse_unreachable([("corpus.path", settings.corpus.path)])
        files = corpus_files(settings)
        held = sample.state(settings.root).finished().fields["corpus"]
        if held != sample.data_fields(settings.corpus, files):
            raise UserError(
                f"corpus.path: {settings.corpus.path} is not the corpus that this run has attributed; give "
                "it as it was, or run again"
            )
        for file in files:
            _check(file, by)
        self._by = by
        self._files = {file.relative: file for file in files}

    def of(self, sources: pa.StringArray) -> pa.StringArray:
        named: dict[str, tuple[list[int], list[int]]] = {}
        for place, source in enumerate(sources.to_pylist()):
            relative, _, row = source.rpartition(":")
            places, rows = named.setdefault(relative, ([], []))
            places.append(place)
            rows.append(int(row))
        found = np.full(len(sources), NOTHING, dtype=object)
        for relative, (places, rows) in named.items():
            found[places] = self._values(self._files[relative], rows)
        return pa.array(found, pa.string())

    def _values(self, file: DataFile, rows: Sequence[int]) -> list[str]:
        cells = rows_at(file, [self._by], sorted(rows)).at(rows)
        return [_spoken(value) for value in cells[self._by]]


def _check(file: DataFile, by: str) -> None:
    """Refuse a file without the column, or with one of lists or objects.

    Raises:
        UserError: naming the file and what it has.
    """
    require_columns([file], [by], setting="--by")
    if not file.is_parquet:
        return
    kind = type_at(file.schema, path_in(file.schema, by))
    if pa.types.is_nested(kind):
        raise UserError(
            f"--by: {by!r} of {file.place} is {kind}; name a column, or a field within one, of words or "
            "numbers"
        )


def _counted(
    codes: npt.NDArray[np.int32],
    parts: int,
    scores: npt.NDArray[np.float32],
    bar: float,
    times: npt.NDArray[np.int64],
) -> list[_Tally]:
    """What rows (N,) add to each of the parts that their codes name: in one go, however many there are."""
    rows = np.bincount(codes, minlength=parts)
    sums = np.bincount(codes, weights=scores, minlength=parts)
    top = np.bincount(codes[scores >= bar], minlength=parts)
    attributions = np.bincount(codes, weights=times, minlength=parts).astype(np.int64)
    columns = (column.tolist() for column in (rows, sums, top, attributions))
    return [_Tally(*own) for own in zip(*columns, strict=True)]


def _spoken(cell: Any) -> str:
    text = str(cell) if isinstance(cell, date | Decimal) else as_text(cell)
    return text or NOTHING


def _times_attributed(record: StageState) -> _Attributed:
    found = record.read(attribute.ATTRIBUTIONS, schemas.ATTRIBUTIONS, ["source"])["source"]
    counted = found.value_counts()
    times = np.append(counted.field("counts").to_numpy(), 0)
    return _Attributed(counted.field("values"), times)


def _bar(record: StageState, top: float) -> float:
    """A score that the share of the corpus reaches, and hardly more of it."""
    counts = np.zeros(BINS, np.int64)
    for rows in record.read_each(attribute.GROUP, schemas.GROUP_INFLUENCE, ["score"]):
        counts += np.bincount(score_bins(rows["score"].to_numpy()), minlength=BINS)
    # .07 x 100 is a little more than 7.
    return bar_of(counts, max(1, math.ceil(round(top * counts.sum(), 6))))


def _table(tallies: dict[str, _Tally]) -> pa.Table:
    order = sorted(tallies, key=lambda value: (-tallies[value].top_rows, -tallies[value].rows, value))
    counted = [tallies[value] for value in order]
    rows, top, attributions = (
        np.array([getattr(tally, name) for tally in counted], dtype=np.int64)
        for name in ("rows", "top_rows", "attributions")
    )
    share, of_top = rows / rows.sum(), top / top.sum()
    return pa.table(
        {
            "value": order,
            "rows": rows,
            "share_of_rows": share,
            "mean_score": [tally.score / tally.rows for tally in counted],
            "top_rows": top,
            "share_of_top": of_top,
            "lift": of_top / share,
            "attributions": attributions,
            "share_of_attributions": attributions / attributions.sum(),
        },
        schema=BREAKDOWN,
    )
