"""Units: the pieces of a stage's input that are done, committed and repeated as a whole."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from influcoder_ray.tables.conditions import Condition, Where
from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.fingerprint import digest_of
from influcoder_ray.tables.json_lines import Span, text_bytes
from influcoder_ray.tables.place import Place

Joined = Literal["none", "counted", "all"]

# Of text, that a line of JSON is taken to have where nobody has counted lines yet.
LINE_BYTES = 2048
# Opening a file on an object store takes as long as reading a megabyte of it: a unit of files of one row
# each would have a worker open files for an hour.
_MOST_FILES = 1024
# Of a row group that is divided: its parts at most, and the rows of one of them.
_MOST_PARTS, _LEAST_ROWS, _MOST_ROWS = 16, 1024, 1 << 18


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a file's rows: `rows` of them from `first_row` on.

    `row_groups` are those of a Parquet file in which these rows stand and that have to be read; the first
    and the last may reach beyond the stretch. JSON Lines have none, but a span of the text, or the whole;
    `rows` is None for lines that were not counted. `where` are the conditions that a row must meet to be
    read; the others keep their numbers.
    """

    place: Place
    relative: str
    row_groups: tuple[int, ...] | None
    first_row: int
    rows: int | None
    span: Span | None = None
    where: Where = ()

    def __str__(self) -> str:
        return f"{self.relative}, rows {self.first_row} on"

    def left_out(self, read: int) -> int:
        """How many of its rows did not meet its conditions, if so many were read."""
        return 0 if self.rows is None else self.rows - read

    def to_dict(self) -> dict[str, Any]:
        return {
            "uri": self.place.uri,
            "relative": self.relative,
            "row_groups": self.row_groups,
            "first_row": self.first_row,
            "rows": self.rows,
            "span": self.span,
            "where": {name: condition.model_dump(mode="json") for name, condition in self.where},
        }

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> "Piece":
        groups, span = fields["row_groups"], fields["span"]
        return Piece(
            Place(fields["uri"]),
            fields["relative"],
            None if groups is None else tuple(groups),
            fields["first_row"],
            fields["rows"],
            None if span is None else (span[0], span[1]),
            tuple((name, Condition.model_validate(c)) for name, c in fields["where"].items()),
        )


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of a file, or several small files whole.

    `unit_id` is a hash of the files' identities and names, the parts of them and the stage's
    fingerprint, so the same work has the same name on every machine and in every run. `table` is
    the table that its result belongs to, where a stage writes several.

    Its rows are numbered through, those that conditions leave out among them: the first piece's by their
    numbers in its file, those of the next pieces on from there.
    """

    unit_id: str
    pieces: tuple[Piece, ...]
    table: str = ""

    def __str__(self) -> str:
        if len(self.pieces) == 1:
            return str(self.piece)
        return f"{len(self.pieces)} files from {self.pieces[0].relative} to {self.pieces[-1].relative}"

    @property
    def piece(self) -> Piece:
        """The piece of a unit that has only one, as all have whose files are not joined."""
        (piece,) = self.pieces
        return piece

    @property
    def is_lines(self) -> bool:
        """Whether it is made of JSON Lines; files of the two kinds are never joined."""
        return self.pieces[0].row_groups is None

    @property
    def rows(self) -> int | None:
        """How many rows it has, read or left out; None where lines were not counted."""
        counts = [piece.rows for piece in self.pieces]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def first_row(self) -> int:
        """The number of the first row."""
        return self.pieces[0].first_row

    @property
    def starts(self) -> list[int]:
        """The number of each piece's first row, of pieces of which all but the last are counted."""
        rows = [piece.rows for piece in self.pieces[:-1]]
        assert None not in rows
        return list(accumulate((count for count in rows if count is not None), initial=self.first_row))

    def sources(self, numbers: Iterable[int]) -> list[str]:
        """Where rows of these numbers stand, each as "<file>:<row>"."""
        starts = self.starts
        found = []
        for number in numbers:
            place = bisect_right(starts, number) - 1
            piece = self.pieces[place]
            found.append(f"{piece.relative}:{piece.first_row + number - starts[place]}")
        return found

    def numbers(self, sources: Iterable[str]) -> npt.NDArray[np.int64]:
        """The numbers of rows that stand there."""
        before = {
            piece.relative: start - piece.first_row
            for start, piece in zip(self.starts, self.pieces, strict=True)
        }
        split = (source.rsplit(":", 1) for source in sources)
        return np.array([before[relative] + int(row) for relative, row in split], dtype=np.int64)

    @contextmanager
    def reading(self, piece: Piece) -> Iterator[None]:
        """Have what goes wrong with a piece name it, where that is not all of the unit."""
        try:
            yield
        except Exception as error:
            if len(self.pieces) > 1:
                error.add_note(f"in {piece}")
            raise

    def to_dict(self) -> dict[str, Any]:
        pieces = [piece.to_dict() for piece in self.pieces]
        return {"unit_id": self.unit_id, "pieces": pieces, "table": self.table}

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> "Unit":
        return Unit(
            fields["unit_id"], tuple(Piece.from_dict(piece) for piece in fields["pieces"]), fields["table"]
        )


def plan_units(
    files: Sequence[DataFile],
    *,
    rows_per_unit: int,
    fingerprint: str,
    table: str = "",
    joined: Joined = "none",
) -> list[Unit]:
    """Cut files into units with at least `rows_per_unit` rows where they can be had.

    A unit is made of whole row groups, or of whole blocks of lines, of one file; or of whole files that have
    fewer rows than that and follow each other, of Parquet with the same columns. Row groups in which no row
    can meet the files' conditions are in no unit and are not counted.

    A row group of twice as many rows or more, and of thousands, is divided evenly. Its later parts pay for
    it: Parquet can be read from a row group's beginning alone, so a part decodes what stands before it and
    drops that, and all P parts together decode (P + 1) / 2 times the group. One core passes over 400 MB of
    text a second: 16 parts of 10,000 documents of 2.7 kB (zstd) took 8.6 s to read and the undivided group
    1.8 s, where making examples of one part takes 0.6 s and embedding it seconds on a GPU, beside which the
    next part is read. So a group has at most `_MOST_PARTS` parts, or as many as keep each below `_MOST_ROWS`
    rows, which a worker holds in memory.

    The cut depends on the files, their conditions and `rows_per_unit` alone, never on machines or on Ray's
    blocks.

    Args:
        joined: which small files may share a unit: none, those whose rows are counted, or all. Lines that
            nobody has counted are then taken to have `LINE_BYTES` of text each; their numbers in the unit
            are not known.
    """
    return [_unit(group, fingerprint, table) for group in _groups(files, rows_per_unit, joined)]


def _groups(
    files: Sequence[DataFile], rows_per_unit: int, joined: Joined
) -> Iterator[list[tuple[DataFile, Piece]]]:
    """The pieces of all files in order, those together that make a unit."""
    held: list[tuple[DataFile, Piece]] = []
    held_rows = 0
    for file in files:
        pieces = [(file, piece) for piece in _pieces(file, rows_per_unit)]
        if not pieces:
            continue
        rows = _joinable_rows(file, joined)
        is_large = rows is None or rows >= rows_per_unit
        if held and (is_large or not _are_alike(held[-1][0], file)):
            yield held
            held, held_rows = [], 0
        if is_large:
            yield from ([piece] for piece in pieces)
            continue
        held += pieces
        held_rows += rows or 0
        if held_rows >= rows_per_unit or len(held) == _MOST_FILES:
            yield held
            held, held_rows = [], 0
    if held:
        yield held


def _pieces(file: DataFile, rows_per_unit: int) -> list[Piece]:
    """A file in pieces of at least so many rows, but for the last; none of a file without rows."""
    if file.row_groups is None:
        return [Piece(file.place, file.relative, None, 0, None, where=file.where)]
    pieces = []

    def add(taken: Sequence[_Stretch]) -> None:
        groups = tuple(dict.fromkeys(stretch.group for stretch in taken))
        first_row, rows = taken[0].first_row, taken[-1].end - taken[0].first_row
        if file.offsets:
            span = file.offsets[groups[0]], file.offsets[groups[-1] + 1]
            pieces.append(Piece(file.place, file.relative, None, first_row, rows, span, file.where))
        else:
            pieces.append(Piece(file.place, file.relative, groups, first_row, rows, where=file.where))

    taken: list[_Stretch] = []
    rows = 0
    for stretch in _stretches(file, rows_per_unit):
        taken.append(stretch)
        rows += stretch.rows
        if rows >= rows_per_unit:
            add(taken)
            taken, rows = [], 0
    if rows:
        add(taken)
    return pieces


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Rows of a row group, or of a block of lines, that stay together."""

    group: int
    first_row: int
    rows: int

    @property
    def end(self) -> int:
        return self.first_row + self.rows


def _stretches(file: DataFile, rows_per_unit: int) -> Iterator[_Stretch]:
    """What a file's pieces are made of: the row groups that are read, large ones of Parquet in parts."""
    starts = list(accumulate(file.row_groups or (), initial=0))
    for group, rows in file.groups_to_read.items():
        parts = _parts(rows, rows_per_unit) if file.is_parquet else 1
        ends = [rows * part // parts for part in range(parts + 1)]
        for start, end in pairwise(ends):
            yield _Stretch(group, starts[group] + start, end - start)


def _parts(rows: int, rows_per_unit: int) -> int:
    """How many parts a row group is divided into, none of them of fewer rows than a unit should have."""
    most = max(_MOST_PARTS, math.ceil(rows / _MOST_ROWS))
    return max(1, min(rows // max(rows_per_unit, _LEAST_ROWS), most))


def _unit(held: Sequence[tuple[DataFile, Piece]], fingerprint: str, table: str) -> Unit:
    names = []
    for file, piece in held:
        names.append([file.identity, file.relative, _name_of(file, piece)])
    # Alone, a piece is named in the same way whether or not it could have been joined.
    named = names[0] if len(names) == 1 else [names]
    unit_id = digest_of([*named, fingerprint, table])[:16]
    return Unit(unit_id, tuple(piece for _, piece in held), table)


def _name_of(file: DataFile, piece: Piece) -> list[Any] | None:
    """What tells a piece from the others of its file."""
    if piece.span is not None:
        return ["bytes", *piece.span]
    if piece.row_groups is None:
        return None
    groups = file.groups_to_read
    is_whole = sum(groups[group] for group in piece.row_groups) == piece.rows
    return list(piece.row_groups) if is_whole else ["rows", piece.first_row, piece.rows, *piece.row_groups]


def _joinable_rows(file: DataFile, joined: Joined) -> int | None:
    """The rows that a file has, or is taken to have; None if it is not to be joined, however small."""
    if joined == "none" or (file.row_groups is None and joined == "counted"):
        return None
    if file.row_groups is not None:
        return sum(file.groups_to_read.values())
    return math.ceil(text_bytes(file.relative, file.size_bytes) / LINE_BYTES)


def _are_alike(one: DataFile, other: DataFile) -> bool:
    """Whether rows of both can stand in one table; lines of JSON have the columns that they are given."""
    if one.is_parquet and other.is_parquet:
        return (one.columns, one.types) == (other.columns, other.types)
    return one.is_parquet == other.is_parquet
