"""What data there are, told by their footers, their sizes and a few of their rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.columns import examples_from_cells
from influcoder_ray.examples.data import DataSpec
from influcoder_ray.tables.cells import Cells, cells_in_parts
from influcoder_ray.tables.datafiles import DataFile, require_columns, require_types
from influcoder_ray.tables.json_lines import BLOCK_BYTES, count_rows, text_bytes
from influcoder_ray.tables.units import plan_units

SAMPLED_ROWS = 512
# Places from which these rows are taken, evenly spread: neighbours in a corpus are often alike.
_SPOTS = 32
# JSON Lines whose rows are counted, and of each so many bytes: the others are taken to be as dense.
_COUNTED_FILES, _COUNTED_BYTES = 8, 4 << 20
# Rows that are passed over at most for one that meets the conditions: rarer ones are not worth the reading.
_MOST_PASSED = 64


@dataclass(frozen=True)
class Part:
    """The cells of some rows of a file, of which `passed` were read to find them."""

    file: DataFile
    cells: Cells
    passed: int


@dataclass(frozen=True)
class Survey:
    """A data set's files, their rows, and the rows that were looked at.

    Attributes:
        file_rows: of each file, whether or not they meet the conditions; without row groups in which none
            can; of JSON Lines an estimate, unless `counted`.
        counted: whether the rows are known and not estimated.
        parts: the rows that were looked at, evenly spread over the files, and meet the conditions.
        examples: those of them that can be used.
        looked_at: how many they were, usable or not.
    """

    files: tuple[DataFile, ...]
    file_rows: tuple[int, ...]
    counted: bool
    parts: tuple[Part, ...]
    examples: tuple[Example, ...]
    looked_at: int

    @property
    def meeting(self) -> float:
        """The share of rows that meet the conditions, among those that were read."""
        return self.looked_at / sum(part.passed for part in self.parts)

    @property
    def rows(self) -> int:
        """The rows that meet the conditions, if the others are like those that were read."""
        return round(sum(self.file_rows) * self.meeting)

    @property
    def usable_rows(self) -> int:
        """The rows that can be used, if the others are like those that were looked at."""
        return round(self.rows * len(self.examples) / self.looked_at)

    def units(self, rows_per_unit: int, *, lines_whole: bool = False) -> list[int]:
        """The rows of each unit into which a stage cuts the files, those that meet the conditions.

        Args:
            lines_whole: whether a file of JSON Lines is never divided, as when it is read for the first time.
        """
        files = list(self.files)
        if not lines_whole:
            files = [
                file if file.is_parquet else _in_blocks(file, rows, rows_per_unit)
                for file, rows in zip(files, self.file_rows, strict=True)
            ]
        rows_of = {file.relative: rows for file, rows in zip(files, self.file_rows, strict=True)}
        units = plan_units(files, rows_per_unit=rows_per_unit, fingerprint="", joined="all")
        found = [
            sum(rows_of[piece.relative] if piece.rows is None else piece.rows for piece in unit.pieces)
            for unit in units
        ]
        # Row groups that are passed over may lie within a unit.
        share = self.rows / max(1, sum(found))
        return found if share == 1 else [round(rows * share) for rows in found]


def survey(data: DataSpec, *, setting: str, sampled_rows: int = SAMPLED_ROWS) -> Survey:
    """Look at a data set without reading it: Parquet by footers, JSON Lines by size, and a few rows of each.

    Args:
        setting: the setting that holds `data`, for the first words of errors.
        sampled_rows: how many rows are looked at, about.

    Raises:
        UserError: the data cannot be used: missing, without the named columns, empty.
    """
    files = data.files(setting, identify=False)
    require_columns(files, data.columns.names, setting=f"{setting}.columns")
    require_types(files, data.columns.kinds, setting=f"{setting}.columns")
    rows, counted = _rows(files)
    if not sum(rows):
        raise UserError(f"{setting}.path: {data.path} holds no rows; give data files with at least some")
    spots = _spots(files, rows, sampled_rows)
    whole = sum(rows) <= sampled_rows
    of_each = sampled_rows if whole else -(-sampled_rows // len(spots))
    parts = [part for file, group in spots for part in _read(file, group, data, of_each)]
    found = [examples_from_cells(p.cells, data.columns, relative=p.file.relative) for p in parts]
    examples = tuple(example for usable, _ in found for example in usable)
    looked_at = len(examples) + sum(len(unusable) for _, unusable in found)
    if not looked_at:
        passed = sum(part.passed for part in parts)
        raise UserError(
            f"{setting}.where: none of {passed:,} rows that were looked at meets the conditions "
            f"({data.says_where}), so that nothing can be foretold"
        )
    if not examples:
        reason = next((unusable[0].reason for _, unusable in found if unusable), "they are blank")
        raise UserError(
            f"{setting}.path: none of {looked_at} rows of {data.path} can be used ({reason}); "
            f"look at {setting}.columns"
        )
    return Survey(tuple(files), tuple(rows), counted and not data.where, tuple(parts), examples, looked_at)


def _rows(files: Sequence[DataFile]) -> tuple[list[int], bool]:
    """The rows of each file, and whether all of them were counted."""
    lines = [file for file in files if not file.is_parquet]
    looked_at = {lines[i * len(lines) // _COUNTED_FILES].relative for i in range(_COUNTED_FILES) if lines}
    counts = {
        file.relative: count_rows(file.place, most_bytes=_COUNTED_BYTES)
        for file in lines
        if file.relative in looked_at
    }
    counted_bytes = sum(count.size_bytes for count in counts.values())
    rows_per_byte = sum(count.rows for count in counts.values()) / max(1, counted_bytes)

    def rows(file: DataFile) -> int:
        if file.is_parquet:
            return sum(file.groups_to_read.values())
        count = counts.get(file.relative)
        if count is not None and count.whole:
            return count.rows
        own = count.rows / count.size_bytes if count is not None and count.rows else rows_per_byte
        return round(file.size_bytes * own)

    known = all(file.relative in counts and counts[file.relative].whole for file in lines)
    return [rows(file) for file in files], known


def _spots(
    files: Sequence[DataFile], file_rows: Sequence[int], sampled_rows: int
) -> list[tuple[DataFile, int]]:
    """Row groups (of JSON Lines the beginning of files) that stand evenly spread among all rows."""
    all_spots = [
        (file, group, rows)
        for file, total in zip(files, file_rows, strict=True)
        for group, rows in (file.groups_to_read.items() if file.is_parquet else [(0, total)])
        if rows
    ]
    ends = list(accumulate(rows for _, _, rows in all_spots))
    if ends[-1] <= sampled_rows:
        return [(file, group) for file, group, _ in all_spots]
    chosen, spot = [], 0
    for i in range(_SPOTS):
        while ends[spot] <= ends[-1] * (2 * i + 1) / (2 * _SPOTS):
            spot += 1
        chosen.append(spot)
    return [all_spots[spot][:2] for spot in dict.fromkeys(chosen)]


def _read(file: DataFile, group: int, data: DataSpec, rows: int) -> list[Part]:
    """The first cells that meet the conditions of a row group, or of JSON Lines."""
    left = rows * (_MOST_PASSED if file.where else 1)
    if file.row_groups is not None:
        left = min(left, file.row_groups[group])
    wanted = min(rows, left)
    parts: list[Part] = []
    for passed, cells in cells_in_parts(file, data.columns.names, row_group=group, rows_at_once=wanted):
        some = cells.first(wanted)
        # Of the last rows no more count as passed than up to the last one that is taken.
        count = len(passed) if len(some) == len(cells) else some.rows[-1] + 1 - passed.start
        parts.append(Part(file, some, min(left, count)))
        left, wanted = left - count, wanted - len(some)
        if wanted <= 0 or left <= 0:
            break
    return parts


def _in_blocks(file: DataFile, rows: int, rows_per_unit: int) -> DataFile:
    """A file of JSON Lines with the blocks of lines that units of so many rows would be made of."""
    size = max(rows_per_unit, _rows_in_block(file, rows))
    return replace(file, row_groups=tuple(min(size, rows - first) for first in range(0, rows, size)))


def _rows_in_block(file: DataFile, rows: int) -> int:
    """About as many lines as stand together in a block, which units are made of."""
    return math.ceil(rows * BLOCK_BYTES / max(1, text_bytes(file.relative, file.size_bytes)))
