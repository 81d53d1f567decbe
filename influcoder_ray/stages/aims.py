"""Whose influence counts: the queries that settings name, found among those that have a vector."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from influcoder_ray.attribution.specs import QueryChoice
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.stages import embed
from influcoder_ray.stages.work.search import query_rows
from influcoder_ray.tables.cells import cells_in_parts
from influcoder_ray.tables.datafiles import DataFile, require_columns

_SHOWN = 5


@dataclass(frozen=True)
class Aims:
    """The queries that rows are scored by.

    Attributes:
        names: of each aim: a query's id, or what a group's members have in common.
        members: the ids of each aim's queries.
        protected: the ids of queries whose influence is taken off.
    """

    names: tuple[str, ...]
    members: tuple[tuple[str, ...], ...]
    protected: tuple[str, ...] = ()

    @property
    def ids(self) -> list[str]:
        """The queries of all aims, in order of id."""
        return sorted(query for members in self.members for query in members)


def find_aims(
    settings: PipelineSettings,
    setting: str,
    queries: QueryChoice,
    *,
    group_by: str | None = None,
    protected: QueryChoice | None = None,
) -> Aims:
    """The named queries as aims, each its own or in groups; without names all that are not protected.

    Args:
        setting: the group of settings that names them, for an error's first words.

    Raises:
        UserError: a name that is no query's, a column that is not there, a value that no query has.
    """
    embedded = query_rows(embed.state(settings.root).data_files(embed.QUERIES), ["example_id"])
    known = embedded["example_id"].to_pylist()
    kept: list[str] = []
    if protected is not None:
        kept = _named(settings, protected, f"{setting}.protected", known)
    wanted = _named(settings, queries, f"{setting}.queries", known)
    if queries.is_all:
        wanted = [query for query in wanted if query not in set(kept)]
    if not wanted:
        raise UserError(f"{setting}.protected: names every query; leave the unwanted ones out of it")
    both = sorted(set(wanted) & set(kept))
    if both:
        raise UserError(
            f"{setting}.protected: query {both[0]!r} is also one of {setting}.queries; name it once"
        )
    if group_by is None:
        return Aims(tuple(wanted), tuple((query,) for query in wanted), tuple(kept))
    values = query_values(settings, group_by, f"{setting}.group_by")
    groups: dict[str, list[str]] = {}
    for query in wanted:
        value = values.get(query)
        if value is None:
            raise UserError(
                f"{setting}.group_by: query {query!r} has nothing in column {group_by!r}; fill it"
            )
        groups.setdefault(value, []).append(query)
    return Aims(tuple(sorted(groups)), tuple(tuple(groups[name]) for name in sorted(groups)), tuple(kept))


def query_values(settings: PipelineSettings, column: str, setting: str) -> dict[str, str | None]:
    """What a column of the query files holds, as text, by query id.

    Raises:
        UserError: a file has no such column.
    """
    files = settings.queries.files("queries")
    return column_by_id(files, settings.queries.columns.id, column, setting)


def column_by_id(
    files: Sequence[DataFile], id_column: str | None, column: str, setting: str
) -> dict[str, str | None]:
    """A column of data files as text by the rows' ids, which are "<file>:<row>" where no column has them.

    Raises:
        UserError: a file has no such column.
    """
    names = [column] if id_column is None else list(dict.fromkeys([id_column, column]))
    require_columns(files, names, setting=setting)
    found: dict[str, str | None] = {}
    for file in files:
        for _, cells in cells_in_parts(file, names):
            for place, row in enumerate(cells.rows):
                own = f"{file.relative}:{row}"
                row_id = own if id_column is None else as_text(cells[id_column][place])
                if row_id is not None:
                    found[row_id] = as_text(cells[column][place])
    return found


def as_text(cell: Any) -> str | None:
    """A cell of a corpus as text; None where it is null or holds something else than a word or number.

    NaN is no number: NumPy and what builds on it have it where nothing is known.
    """
    if isinstance(cell, bytes):
        return cell.decode(errors="replace")
    if isinstance(cell, float) and math.isnan(cell):
        return None
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell) if isinstance(cell, str | int | float) else None


def _named(settings: PipelineSettings, choice: QueryChoice, setting: str, known: Sequence[str]) -> list[str]:
    if choice.is_all:
        return list(known)
    if choice.column is None:
        absent = [query for query in choice.ids if query not in set(known)]
        if absent:
            raise UserError(
                f"{setting}.ids: {absent[0]!r} is none of the {len(known)} queries that have a vector; "
                f"there are {_some(known)}"
            )
        return sorted(set(choice.ids))
    values = query_values(settings, choice.column, f"{setting}.column")
    held = {query: values.get(query) for query in known}
    _refuse_absent(choice, held, setting)
    return [query for query in known if held[query] in choice.values]


def _refuse_absent(choice: QueryChoice, held: Mapping[str, str | None], setting: str) -> None:
    present = sorted({value for value in held.values() if value is not None})
    for value in choice.values:
        if value not in present:
            raise UserError(
                f"{setting}.values: no query has {value!r} in column {choice.column!r}; "
                f"there are {_some(present)}"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") or "none"
