"""The examples of a run's embeddings by number: its files, and the rows of each, follow each other."""

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.ahead import in_order
from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages import embed
from influcoder_ray.tables.arrays import Stored
from influcoder_ray.tables.manifests import CommittedFile
from influcoder_ray.tables.vectors import read_vectors

# That fetch cells out of as many files: most of the time is waiting for a store.
_THREADS = 16

Numbers = npt.NDArray[np.int64]


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

    def __len__(self) -> int:
        """How many examples there are."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @cached_property
    def _ends(self) -> Numbers:
        return np.cumsum([file.rows for file in self._files], dtype=np.int64)

    def shards(self, column: str) -> Iterator[tuple[int, Iterator[Stored]]]:
        """The number of each file's first example, and its vectors, some thousand rows at a time."""
        for file, end in zip(self._files, self._ends.tolist(), strict=True):
            yield end - file.rows, read_vectors(self._root / file.path, column=column)

    def cells(self, numbers: Numbers, columns: Sequence[str]) -> pa.Table:
        """Columns of the examples (M,) with some numbers, in their order.

        Of a file only the row groups are read that hold one of them.
        """
        if not len(numbers):
            return pa.table({name: [] for name in columns})
        order = np.argsort(numbers, kind="stable")
        places = np.searchsorted(self._ends, numbers[order], side="right")
        found, firsts = np.unique(places, return_index=True)
        members = zip(found.tolist(), np.split(numbers[order], firsts[1:]), strict=True)
        tables = in_order(lambda one: self._of_file(*one, columns), members, threads=_THREADS, ahead=_THREADS)
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_tables(tables).take(pa.array(back))

    def _of_file(self, place: int, numbers: Numbers, columns: Sequence[str]) -> pa.Table:
        """The rows of a file with some rising numbers."""
        file = self._files[place]
        rows = numbers - (int(self._ends[place]) - file.rows)
        with (self._root / file.path).open() as stream:
            parquet = pq.ParquetFile(stream)
            footer = parquet.metadata
            sizes = np.array([footer.row_group(group).num_rows for group in range(footer.num_row_groups)])
            ends = np.cumsum(sizes)
            of_rows = np.searchsorted(ends, rows, side="right")
            groups = np.unique(of_rows)
            table = parquet.read_row_groups(groups.tolist(), columns=list(columns))
        # Where each group begins among those that were read.
        begins = dict(zip(groups.tolist(), np.cumsum(sizes[groups]) - sizes[groups], strict=True))
        within = rows - (ends - sizes)[of_rows]
        return table.take(pa.array(within + np.array([begins[group] for group in of_rows.tolist()])))
