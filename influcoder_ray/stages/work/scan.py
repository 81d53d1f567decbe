"""Scan: which contents of a corpus may be in the sample.

The choice is a bottom-k sample: of all contents, those with the smallest hash of (seed, content). It
does not depend on how the corpus is cut into files or units, nor on who scans them.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence

import pyarrow as pa

from influcoder_ray.examples import ColumnSpec, Example
from influcoder_ray.examples.columns import Unusable, examples_from_cells
from influcoder_ray.examples.example import to_table
from influcoder_ray.tables import schemas
from influcoder_ray.tables.cells import Cells, cells_of_lines, read_pieces
from influcoder_ray.tables.json_lines import Span, line_blocks
from influcoder_ray.tables.state import Output, quarantine_table
from influcoder_ray.tables.units import Piece, Unit

# Where lines stand that lie together: how many, and their bytes.
Block = tuple[int, Span]


class ScanWork:
    """Reads a unit of a corpus and keeps the contents that may be in the sample.

    Args:
        columns: what the corpus's columns hold.
        count: how many contents the sample holds; None for all.
        seed: of the choice.
        apart_from: content hashes that may not be in the sample.
        stage: whose quarantine takes the rows that cannot be used.
        line_blocks: the table that takes where the lines of JSON stand; None for none.
    """

    def __init__(
        self,
        columns: ColumnSpec,
        count: int | None,
        seed: int,
        apart_from: Collection[str],
        stage: str,
        line_blocks: str | None = None,
    ) -> None:
        self._columns = columns
        self._count = count
        self._seed = seed
        self._taken = frozenset(apart_from)
        self._stage = stage
        self._line_blocks = line_blocks

    def read(self, unit: Unit) -> list[tuple[Piece, Cells]] | None:
        """The rows of a unit of Parquet; lines are read as they are gone through, for a file may be large."""
        return None if unit.is_lines else read_pieces(unit, self._columns.names)

    def process(
        self, unit: Unit, rows: list[tuple[Piece, Cells]] | None, report: Callable[[int], None]
    ) -> Output:
        chosen: list[Example] = []
        unusable: list[Unusable] = []
        usable = shared = left_out = 0
        blocks: dict[str, list[Block]] = defaultdict(list)
        parts = ((piece.relative, piece.left_out(len(cells)), cells) for piece, cells in rows or ())
        for relative, others, cells in self._lines(unit, blocks) if rows is None else parts:
            examples, refused = examples_from_cells(cells, self._columns, relative=relative)
            apart = [e for e in examples if e.content_hash not in self._taken]
            chosen = smallest([*chosen, *apart], self._seed, self._count)
            unusable += refused
            usable, shared = usable + len(examples), shared + len(examples) - len(apart)
            left_out += others
            report(len(cells) + others)
        tables = {unit.table: to_table(chosen, [""] * len(chosen))}
        if self._line_blocks is not None and blocks:
            tables[self._line_blocks] = pa.concat_tables(
                [block_table(relative, found) for relative, found in blocks.items()]
            )
        return Output(
            tables,
            rows_in=usable + len(unusable),
            rows_out=usable,
            quarantine=quarantine_table(self._stage, [(u.example_id, u.source, u.reason) for u in unusable]),
            counters={"shared_with_queries": shared, "left_out": left_out},
        )

    def _lines(self, unit: Unit, blocks: dict[str, list[Block]]) -> Iterator[tuple[str, int, Cells]]:
        """The cells of lines, a block at a time, with the file of each and how many lines are left out.

        `blocks` gets what each file's were.
        """
        for piece in unit.pieces:
            with unit.reading(piece):
                for block in line_blocks(piece.place, piece.span, first_row=piece.first_row):
                    blocks[piece.relative].append((len(block.lines), block.span))
                    numbered = enumerate(block.lines, block.first_row)
                    cells = cells_of_lines(numbered, self._columns.names, piece.where)
                    yield piece.relative, len(block.lines) - len(cells), cells


def block_table(file: str, blocks: Sequence[Block]) -> pa.Table:
    """The blocks of a file of JSON Lines, rows and bytes of each, as `schemas.LINE_BLOCKS`."""
    cells = {
        "file": [file] * len(blocks),
        "rows": [rows for rows, _ in blocks],
        "start": [start for _, (start, _) in blocks],
        "end": [end for _, (_, end) in blocks],
    }
    return pa.table(cells, schema=schemas.LINE_BLOCKS)


def smallest(examples: Sequence[Example], seed: int, count: int | None) -> list[Example]:
    """The distinct contents with the smallest keys, in order of key; of equal contents the first id."""
    first: dict[str, Example] = {}
    for example in examples:
        held = first.get(example.content_hash)
        if held is None or example.example_id < held.example_id:
            first[example.content_hash] = example
    ordered = sorted(first.values(), key=lambda e: seeded_key(seed, "sample", e.content_hash))
    return ordered[:count]


def seeded_key(seed: int, purpose: str, content_hash: str) -> bytes:
    """What contents are ordered by for a purpose: a hash, so that any order is as likely."""
    return hashlib.sha256(f"{seed}\x1f{purpose}\x1f{content_hash}".encode()).digest()
