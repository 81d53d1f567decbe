"""The examples of a run's embeddings by number: its files, and the rows of each, follow each other."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from influcoder_ray.ahead import in_order
from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages import embed
from influcoder_ray.tables.arrays import Stored
from influcoder_ray.tables.manifests import CommittedFile
from influcoder_ray.tables.vectors import read_vectors

# What an answer says of an example beside its place.
_COLUMNS = ["example_id", "source", "familiarity"]
# That fetch cells out of as many files: most of the time is waiting for a store.
_THREADS = 16

Numbers = npt.NDArray[np.int64]
Cells = dict[int, dict[str, Any]]


class Corpus:
    """What lies in a run's embeddings.

    Raises:
        UserError: they are not finished.
    """

    def __init__(self, settings: PipelineSettings) -> None:
        record = embed.state(settings.root)
        self.fingerprint = record.finished()
        self._root = record.root
        self._files: Sequence[CommittedFile] = record.files(embed.CORPUS)
        self._ends: Numbers = np.cumsum([file.rows for file in self._files], dtype=np.int64)

    def __len__(self) -> int:
        """How many examples there are."""
        return sum(file.rows for file in self._files)

    def shards(self, column: str) -> Iterator[tuple[int, Iterator[Stored]]]:
        """The number of each file's first example, and its vectors, some thousand rows at a time."""
        for file, end in zip(self._files, self._ends.tolist(), strict=True):
            yield end - file.rows, read_vectors(self._root / file.path, column=column)

    def cells(self, numbers: Numbers) -> Cells:
        """The id, source and familiarity of each of some examples, which may be named twice.

        Of a file only the row groups are read that hold one of them.
        """
        rising = np.unique(numbers)
        places = np.searchsorted(self._ends, rising, side="right")
        members = ((place, rising[places == place]) for place in np.unique(places).tolist())
        found: Cells = {}
        for cells in in_order(lambda one: self._of_file(*one), members, threads=_THREADS, ahead=_THREADS):
            found |= cells
        return found

    def _of_file(self, place: int, numbers: Numbers) -> Cells:
        """Those of rising numbers within a file."""
        file = self._files[place]
        rows = numbers - (self._ends[place] - file.rows)
        found: Cells = {}
        with (self._root / file.path).open() as stream:
            parquet = pq.ParquetFile(stream)
            footer = parquet.metadata
            ends = np.cumsum([footer.row_group(group).num_rows for group in range(footer.num_row_groups)])
            groups = np.searchsorted(ends, rows, side="right")
            for group in np.unique(groups).tolist():
                here = groups == group
                first = ends[group] - footer.row_group(group).num_rows
                table = parquet.read_row_group(group, columns=_COLUMNS).take(rows[here] - first)
                found |= dict(zip(numbers[here].tolist(), table.to_pylist(), strict=True))
        return found
