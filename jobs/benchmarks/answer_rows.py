"""The pool and the queries of a benchmark of known answers: rows with what is known of them, and their parts.

Shapes: P pool rows, Q queries.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from influcoder_ray.errors import UserError
from influcoder_ray.examples import ColumnSpec, Example
from influcoder_ray.examples.columns import examples_from_cells
from influcoder_ray.stages.work.scan import seeded_key
from influcoder_ray.tables.cells import read_cells
from influcoder_ray.tables.datafiles import find_data_files, require_columns
from influcoder_ray.tables.units import plan_units

Say = Callable[[str], None]

_VALIDATION_SHARE = 0.2
_LEAST_TO_TRAIN = 10


@dataclass(frozen=True)
class Condition:
    """That a column holds one of some values, as they are written on a command line."""

    column: str
    values: tuple[str, ...]

    @staticmethod
    def parse(text: str, *, option: str) -> "Condition":
        """Of "column=value" or "column=value,value".

        Raises:
            UserError: there is no column or no value.
        """
        column, separator, values = text.partition("=")
        if not (column and separator and values):
            raise UserError(f"{option}: {text!r} is no condition; give column=value")
        return Condition(column, tuple(values.split(",")))

    def holds(self, value: Any) -> bool:
        return _written(value) in self.values


@dataclass(frozen=True)
class Rows:
    """Examples of different content (N,), and the cells of further columns, (N,) each, by name.

    `row_of_id` finds every id of the file, those of repeated content too. `columns` are
    all that the files have, `unusable` counts the rows that are no example.
    """

    examples: list[Example]
    cells: Mapping[str, list[Any]]
    row_of_id: Mapping[str, int]
    columns: tuple[str, ...]
    unusable: int

    def __len__(self) -> int:
        return len(self.examples)

    def taken(self, rows: Sequence[int]) -> list[Example]:
        return [self.examples[row] for row in rows]


@dataclass(frozen=True)
class Parts:
    """Which rows are tested on, and which are learnt from: rows of pool and queries, each in file order.

    No content is in two of them. `row_weights` (P,) says for how many rows each tested one stands: more than
    one where not all are tested that could be.
    """

    queries: list[int]
    rows: list[int]
    row_weights: np.ndarray
    negatives: list[int]
    training: Mapping[str, Mapping[str, list[int]]]

    @property
    def of_queries(self) -> list[int]:
        """All queries in any part."""
        return [*self.queries, *(row for part in self.training["queries"].values() for row in part)]

    @property
    def of_pool(self) -> list[int]:
        """All pool rows in any part."""
        return [
            *self.rows,
            *self.negatives,
            *(row for part in self.training["pool"].values() for row in part),
        ]

    def without(self, *, queries: Collection[int], pool: Collection[int]) -> tuple["Parts", int]:
        """The parts without these queries and pool rows, and how many were taken out."""
        refused = {"queries": set(queries), "pool": set(pool)}
        there = [row not in refused["pool"] for row in self.rows]
        left = Parts(
            queries=[row for row in self.queries if row not in refused["queries"]],
            rows=[row for row, kept in zip(self.rows, there, strict=True) if kept],
            row_weights=self.row_weights[there],
            negatives=[row for row in self.negatives if row not in refused["pool"]],
            training={
                side: {
                    name: [row for row in part if row not in refused[side]] for name, part in parts.items()
                }
                for side, parts in self.training.items()
            },
        )
        return left, len(refused["queries"]) + len(refused["pool"])


def read(
    path: str,
    columns: ColumnSpec,
    *,
    option: str,
    conditions: Sequence[Condition] = (),
    further: Sequence[str] = (),
    perhaps: Sequence[str] = (),
) -> Rows:
    """The rows of data files for which all conditions hold whose column the files have.

    Args:
        option: that names the path, for the error's first words.
        further: columns whose cells are kept; perhaps: those that are kept where the files have them.

    Raises:
        UserError: the files are not there, lack a column, or hold no usable row; one id stands twice.
    """
    files = find_data_files(path, setting=option)
    known = set(files[0].columns)
    conditions = [condition for condition in conditions if condition.column in known]
    there = [name for name in (*perhaps, *(c.column for c in conditions)) if name in known]
    kept = list(dict.fromkeys([*further, *there]))
    require_columns(files, [*columns.names, *kept], setting=option)
    examples: list[Example] = []
    cells: dict[str, list[Any]] = {name: [] for name in kept}
    row_of_id: dict[str, int] = {}
    row_of_content: dict[str, int] = {}
    unusable = 0
    for unit in plan_units(files, rows_per_unit=1 << 62, fingerprint=""):
        found = read_cells(unit, list(dict.fromkeys([*columns.names, *kept])))
        file = unit.piece.relative
        good, bad = examples_from_cells(found, columns, relative=file)
        place = {e.source: e for e in good}
        refused = {u.source for u in bad}
        for place_in_file, number in enumerate(found.rows):
            row = {name: _plain(found[name][place_in_file]) for name in kept}
            if not all(c.holds(row[c.column]) for c in conditions):
                continue
            source = f"{file}:{number}"
            if source in refused:
                unusable += 1
                continue
            example = place[source]
            if example.example_id in row_of_id:
                raise UserError(
                    f"{option}: id {example.example_id!r} stands twice; give a column of unique ids"
                )
            content = example.content_hash
            row_of_id[example.example_id] = row_of_content.setdefault(content, len(examples))
            if row_of_content[content] == len(examples):
                examples.append(example)
                for name in kept:
                    cells[name].append(row[name])
    if not examples:
        wanted = "".join(f" with {c.column}={','.join(c.values)}" for c in conditions)
        raise UserError(f"{option}: {path} holds no usable row{wanted}; look at its columns and values")
    return Rows(examples, cells, row_of_id, files[0].columns, unusable)


def supporting_rows(queries: Rows, column: str, pool: Rows) -> list[list[int]]:
    """The pool rows that support each query (Q,), by the lists of ids in its column.

    Raises:
        UserError: a cell is no list of ids, or none of its ids is in the pool.
    """
    supports = []
    for example, ids in zip(queries.examples, queries.cells[column], strict=True):
        if not isinstance(ids, list):
            raise UserError(f"--supports: {column} of query {example.example_id!r} is no list of pool ids")
        rows = sorted({pool.row_of_id[i] for i in map(_written, ids) if i in pool.row_of_id})
        if not rows:
            raise UserError(
                f"--supports: query {example.example_id!r} names {len(ids)} ids in {column}, none of which "
                "is in the pool; name the pool's ids with --id, or choose rows with --where"
            )
        supports.append(rows)
    return supports


def labels_of(pool: Rows, column: str) -> np.ndarray:
    """Whether each pool row (P,) is positive.

    Raises:
        UserError: a label is neither 0 nor 1, or all are the same.
    """
    truth = {"1": True, "true": True, "0": False, "false": False}
    labels = []
    for example, value in zip(pool.examples, pool.cells[column], strict=True):
        if _written(value) not in truth:
            raise UserError(
                f"--label: {column} of {example.example_id!r} is {_written(value)!r}; give 0 or 1"
            )
        labels.append(truth[_written(value)])
    if len(set(labels)) == 1:
        raise UserError(f"--label: {column} is {int(labels[0])} in every row; both kinds are needed")
    return np.array(labels)


def split(
    queries: Rows,
    pool: Rows,
    *,
    positives: Sequence[Sequence[int]] | np.ndarray,
    seed: int,
    count: int | None,
    rows: int | None,
    sample: int,
    sample_queries: int | None,
    together: str | None,
    negatives: Sequence[int],
) -> Parts:
    """Test and training rows by seeded hashes of content: the same whatever the files' order.

    Test queries are drawn first. Then the rows that support one of them are for the test, and so are rows
    that share its value of the column `together` with such a query or row. Of what is left `sample` rows are
    learnt from, and the queries that are not tested; a fifth of either chooses the epoch.

    Args:
        positives: the rows that support each query (Q,), or whether each pool row (P,) is positive.
        count: test queries; half of all if None.
        sample_queries: queries to learn from; all that are not tested if None.
        rows: test rows at most; those that support a test query or are like one that does, and those that are
            positive, are kept, so that it is the others that are thinned out.
        negatives: pool rows that serve as references, and are in no other part.

    Raises:
        UserError: too few rows or queries are left to learn from, or only rows to be found to test on.
    """
    apart = set(negatives)
    shared = {e.content_hash for e in pool.examples}
    usable = [i for i, e in enumerate(queries.examples) if e.content_hash not in shared]
    drawn = _drawn(queries, usable, seed, "test")
    count = count or len(drawn) // 2
    tested, learning = drawn[:count], drawn[count:][:sample_queries]
    by_label = isinstance(positives, np.ndarray)
    reserved: set[int] = set()
    if not by_label:
        supporting = {row for query in tested for row in positives[query]}
        reserved = supporting | _alike(queries, pool, tested, supporting, together)
    free = _drawn(pool, [r for r in range(len(pool)) if r not in reserved and r not in apart], seed, "sample")
    if len(learning) < _LEAST_TO_TRAIN or len(free) < sample:
        raise UserError(
            f"--sample: {len(free)} rows and {len(learning)} queries have nothing to do with the {count} "
            f"test queries, and {sample} rows and {_LEAST_TO_TRAIN} queries are needed to learn from; lower "
            "--sample or --count"
        )
    sampled, rest = free[:sample], free[sample:]
    kept = {row for row in rest if positives[row]} if by_label else reserved - apart
    others = _drawn(pool, [row for row in rest if row not in kept], seed, "rows")
    if by_label and rows and len(kept) >= rows:
        raise UserError(
            f"--rows: {len(kept)} rows are to be found, so that {rows} leave no room for others, without "
            "which every method finds them first; give more"
        )
    taken = others[: max(0, rows - len(kept))] if rows else others
    test_rows = sorted([*kept, *taken])
    weight = len(others) / max(1, len(taken))
    return Parts(
        queries=sorted(tested),
        rows=test_rows,
        row_weights=np.array([1.0 if row in kept else weight for row in test_rows]),
        negatives=sorted(negatives),
        training={"queries": _halves(learning), "pool": _halves(sampled)},
    )


def choose(pool: Rows, condition: Condition, count: int, seed: int) -> list[int]:
    """`count` pool rows for which a condition holds, by a seeded hash of their content.

    Raises:
        UserError: there are fewer.
    """
    held = [row for row, value in enumerate(pool.cells[condition.column]) if condition.holds(value)]
    if len(held) < count:
        raise UserError(
            f"--negatives: {len(held)} rows have {condition.column}={','.join(condition.values)}, fewer than "
            f"{count}; lower --negative-count"
        )
    return _drawn(pool, held, seed, "negatives")[:count]


def _alike(
    queries: Rows, pool: Rows, tested: Sequence[int], supporting: set[int], together: str | None
) -> set[int]:
    if together is None:
        return set()
    values = {_written(pool.cells[together][row]) for row in supporting}
    if together in queries.cells:
        values |= {_written(queries.cells[together][query]) for query in tested}
    values.discard("")
    return {row for row, value in enumerate(pool.cells[together]) if _written(value) in values}


def _drawn(rows: Rows, wanted: Sequence[int], seed: int, purpose: str) -> list[int]:
    return sorted(wanted, key=lambda row: seeded_key(seed, purpose, rows.examples[row].content_hash))


def _halves(drawn: Sequence[int]) -> dict[str, list[int]]:
    validation = max(2, round(_VALIDATION_SHARE * len(drawn)))
    return {"validation": sorted(drawn[:validation]), "train": sorted(drawn[validation:])}


def _plain(value: Any) -> Any:
    """A cell with its text decoded; what is no UTF-8 is no value."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _written(value: Any) -> str:
    """A cell as one would write it on a command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
