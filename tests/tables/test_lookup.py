"""Rows of a file, found again by their numbers."""

import gzip
import json
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.tables.datafiles import DataFile, find_data_files
from influcoder_ray.tables.json_lines import line_blocks
from influcoder_ray.tables.lookup import rows_at

ROWS = 40


def written(folder: Path, kind: str) -> DataFile:
    """A file of numbered rows: of Parquet in row groups of seven, of lines in blocks of 200 bytes."""
    rows = [{"n": row, "text": "x" * (row % 5)} for row in range(ROWS)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet", row_group_size=7)
        return find_data_files(str(folder), setting="s")[0]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    name = "a.jsonl.gz" if kind == "packed lines" else "a.jsonl"
    (folder / name).write_bytes(gzip.compress(text) if kind == "packed lines" else text)
    (file,) = find_data_files(str(folder), setting="s")
    if kind == "uncounted lines":
        return file
    blocks = list(line_blocks(file.place, block_bytes=200))
    assert len(blocks) > 3
    spans = [block.span for block in blocks]
    counts = tuple(len(block.lines) for block in blocks)
    assert [block.first_row for block in blocks] == list(accumulate(counts[:-1], initial=0))
    return replace(file, row_groups=counts, offsets=(*(start for start, _ in spans), spans[-1][1]))


@given(
    st.sampled_from(["parquet", "lines", "packed lines", "uncounted lines"]),
    st.lists(st.integers(0, ROWS - 1), min_size=1, unique=True),
)
@settings(max_examples=60, deadline=None)
def test_rows_are_found_by_their_numbers_wherever_they_stand(kind: str, wanted: list[int]) -> None:
    """Prevents the first row of a block from passing for the first of the file, and rows at its edges."""
    rows = sorted(wanted)
    with TemporaryDirectory() as name:
        cells = rows_at(written(Path(name), kind), ["n"], rows)
    assert list(cells.rows) == list(cells["n"]) == rows
