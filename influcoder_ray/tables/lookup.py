"""Single rows of a corpus, found again by file and row."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from influcoder_ray.tables.cells import read_piece
from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.units import Piece

Rows = dict[str, dict[str, list[Any]]]


def find_rows(files: Sequence[DataFile], columns: Sequence[str], sources: Iterable[str]) -> Rows:
    """The raw cells of the rows named by sources ("<file>:<row>"), each as columns of one value.

    Only the row groups, or blocks of lines, that hold a wanted row are read.
    """
    wanted: dict[str, set[int]] = defaultdict(set)
    for source in sources:
        relative, number = source.rsplit(":", 1)
        wanted[relative].add(int(number))
    found: Rows = {}
    for file in files:
        rows = sorted(wanted.get(file.relative, ()))
        for piece, members in _pieces(file, rows):
            cells = read_piece(piece, columns)
            for row in members:
                values = {name: [column[row - piece.first_row]] for name, column in cells.items()}
                found[f"{file.relative}:{row}"] = values
    return found


def _pieces(file: DataFile, rows: Sequence[int]) -> Iterator[tuple[Piece, Sequence[int]]]:
    """The parts of a file that hold the wanted rows, and which these are."""
    if not rows:
        return
    if file.row_groups is None:
        yield Piece(file.place, file.relative, None, 0, None), rows
        return
    ends = list(accumulate(file.row_groups))
    groups = np.searchsorted(ends, rows, side="right")
    for group in np.unique(groups).tolist():
        first = ends[group] - file.row_groups[group]
        members = [row for row, g in zip(rows, groups, strict=True) if g == group]
        if file.is_parquet:
            yield Piece(file.place, file.relative, (group,), first, None), members
        else:
            span = file.offsets[group], file.offsets[group + 1]
            yield Piece(file.place, file.relative, None, first, None, span), members
