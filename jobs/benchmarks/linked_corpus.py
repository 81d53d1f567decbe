"""A corpus of any number of rows that takes next to no room: one file, under as many names as are wanted.

All its rows hold one text, so that its row groups take some hundred bytes each; a name is a hard link. What
looks at a corpus by its footers finds as many files, row groups and rows as a real one of that size has.
"""

import os
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.errors import UserError

GROUPS_PER_FILE = 100
_TEXT = "what a person would say of a thing that happened some time ago in a place nobody remembers"


def linked_corpus(folder: Path, units: int, rows_per_unit: int, words: int) -> None:
    """Make a corpus of which each row group is a unit; `text` is its column.

    Args:
        units: a multiple of `GROUPS_PER_FILE`, or fewer, which are then one file's.
        words: of each text.

    Raises:
        UserError: the folder is not empty, or lies on a disk without hard links.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(f"--corpus: {folder} is not empty; give a folder that is")
    text = " ".join(islice(cycle(_TEXT.split()), words))
    group = pa.table({"text": [text] * rows_per_unit})
    first = folder / f"{0:06}.parquet"
    with pq.ParquetWriter(first, group.schema, compression="zstd") as file:
        for _ in range(min(units, GROUPS_PER_FILE)):
            file.write_table(group)
    for number in range(1, units // GROUPS_PER_FILE):
        try:
            os.link(first, folder / f"{number:06}.parquet")
        except OSError as error:
            raise UserError(
                f"--corpus: {folder} takes no hard links ({error.strerror}); give another"
            ) from error
