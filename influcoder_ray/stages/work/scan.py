"""Scan: which contents of a corpus may be in the sample.

The choice is a bottom-k sample: of all contents, those with the smallest hash of (seed, content). It
does not depend on how the corpus is cut into files or units, nor on who scans them.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

from influcoder_ray.examples import ColumnSpec, Example
from influcoder_ray.examples.columns import examples_from_cells
from influcoder_ray.examples.example import to_table
from influcoder_ray.tables.cells import read_cells
from influcoder_ray.tables.state import Output, quarantine_table
from influcoder_ray.tables.units import Unit


class ScanWork:
    """Reads a unit of a corpus and keeps the contents that may be in the sample.

    Args:
        columns: what the corpus's columns hold.
        count: how many contents the sample holds; None for all.
        seed: of the choice.
        apart_from: content hashes that may not be in the sample.
        stage: whose quarantine takes the rows that cannot be used.
    """

    def __init__(
        self,
        columns: ColumnSpec,
        count: int | None,
        seed: int,
        apart_from: Collection[str],
        stage: str,
    ) -> None:
        self._columns = columns
        self._count = count
        self._seed = seed
        self._taken = frozenset(apart_from)
        self._stage = stage

    def read(self, unit: Unit) -> dict[str, list[Any]]:
        return read_cells(unit, self._columns.names)

    def process(self, unit: Unit, rows: dict[str, list[Any]], report: Callable[[int], None]) -> Output:
        examples, unusable = examples_from_cells(
            rows, self._columns, relative=unit.relative, first_row=unit.first_row
        )
        apart = [e for e in examples if e.content_hash not in self._taken]
        chosen = smallest(apart, self._seed, self._count)
        return Output(
            {unit.table: to_table(chosen, [""] * len(chosen))},
            rows_in=len(examples) + len(unusable),
            rows_out=len(examples),
            quarantine=quarantine_table(self._stage, [(u.example_id, u.source, u.reason) for u in unusable]),
            counters={"shared_with_queries": len(examples) - len(apart)},
        )


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
