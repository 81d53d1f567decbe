"""Single rows of a corpus, found again by file and row."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from influcoder_ray.tables.cells import read_cells
from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.units import Unit

Rows = dict[str, dict[str, list[Any]]]


def find_rows(files: Sequence[DataFile], columns: Sequence[str], sources: Iterable[str]) -> Rows:
    """The raw cells of the rows named by sources ("<file>:<row>"), each as columns of one value.

    Only the row groups that hold a wanted row are read.
    """
    wanted: dict[str, set[int]] = defaultdict(set)
    for source in sources:
        relative, number = source.rsplit(":", 1)
        wanted[relative].add(int(number))
    found: Rows = {}
    for file in files:
        rows = sorted(wanted.get(file.relative, ()))
        for group, first, members in _by_group(file, rows):
            cells = read_cells(Unit("", file.place, file.relative, group, first, None), columns)
            for row in members:
                values = {name: [column[row - first]] for name, column in cells.items()}
                found[f"{file.relative}:{row}"] = values
    return found


def _by_group(
    file: DataFile, rows: Sequence[int]
) -> Iterable[tuple[tuple[int, ...] | None, int, Sequence[int]]]:
    """Row groups with the first row of each and the wanted rows in it."""
    if not rows:
        return
    if file.row_groups is None:
        yield None, 0, rows
        return
    ends = list(accumulate(file.row_groups))
    groups = np.searchsorted(ends, rows, side="right")
    for group in np.unique(groups):
        first = ends[group] - file.row_groups[group]
        yield (int(group),), first, [row for row, g in zip(rows, groups, strict=True) if g == group]
