"""Single rows of a corpus, found again by file and row."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np

from influcoder_ray.tables.cells import Cells, read_piece
from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.units import Piece

Rows = dict[str, Cells]


def find_rows(files: Sequence[DataFile], columns: Sequence[str], sources: Iterable[str]) -> Rows:
    """The raw cells of the rows named by sources ("<file>:<row>"), each by itself.

    Only the row groups, or blocks of lines, that hold a wanted row are read, and of a row group no more than
    up to the last one.
    """
    wanted: dict[str, set[int]] = defaultdict(set)
    for source in sources:
        relative, number = source.rsplit(":", 1)
        wanted[relative].add(int(number))
    found: Rows = {}
    for file in files:
        rows = sorted(wanted.get(file.relative, ()))
        for piece, members in _pieces(file, rows):
            cells = read_piece(piece, columns, wanted=np.array(members))
            found.update({f"{file.relative}:{row}": cells.at([row]) for row in cells.rows})
    return found


def rows_at(file: DataFile, columns: Sequence[str], rows: Sequence[int]) -> Cells:
    """The raw cells of rows of a file, rising, in one go from the first of them to the last.

    Only row groups, or blocks of lines, between these are read.
    """
    if file.row_groups is None:
        piece = Piece(file.place, file.relative, None, 0, None, where=file.where)
        return read_piece(piece, columns, wanted=np.array(rows))
    ends = list(accumulate(file.row_groups))
    first, last = np.searchsorted(ends, [rows[0], rows[-1]], side="right").tolist()
    start = ends[first] - file.row_groups[first]
    if file.is_parquet:
        groups = tuple(range(first, last + 1))
        piece = Piece(file.place, file.relative, groups, start, ends[last] - start, where=file.where)
    else:
        span = file.offsets[first], file.offsets[last + 1]
        piece = Piece(file.place, file.relative, None, start, None, span, file.where)
    return read_piece(piece, columns, wanted=np.array(rows))


def _pieces(file: DataFile, rows: Sequence[int]) -> Iterator[tuple[Piece, Sequence[int]]]:
    """The parts of a file that hold the wanted rows, and which these are."""
    if not rows:
        return
    if file.row_groups is None:
        yield Piece(file.place, file.relative, None, 0, None, where=file.where), rows
        return
    ends = list(accumulate(file.row_groups))
    rows = [row for row in rows if row < ends[-1]] if ends else []
    groups = np.searchsorted(ends, rows, side="right")
    for group in np.unique(groups).tolist():
        first = ends[group] - file.row_groups[group]
        members = [row for row, g in zip(rows, groups, strict=True) if g == group]
        if file.is_parquet:
            last = members[-1] + 1
            yield Piece(file.place, file.relative, (group,), first, last - first, where=file.where), members
        else:
            span = file.offsets[group], file.offsets[group + 1]
            yield Piece(file.place, file.relative, None, first, None, span, file.where), members
