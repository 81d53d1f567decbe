"""Whole rows of a corpus, with every column that it has, as Arrow tables.

Parquet rows come as they are. Lines of JSON have no types, so those of a file are told from its values,
and those of a corpus are what all of its files fit into. A column whose values fit no one type is kept as
JSON text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from influcoder_ray.tables.json_lines import Unreadable
from influcoder_ray.tables.rows import lines_of_piece, rows_of_parquet
from influcoder_ray.tables.units import Unit

_AS_JSON = {b"influcoder_ray": b"json"}
_NO_TYPE = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)


@dataclass(frozen=True)
class Records:
    """Rows of a unit that can be kept, the number of each in the unit, and why those of others cannot.

    What the corpus's conditions leave out is in neither.
    """

    table: pa.Table
    rows: Sequence[int]
    unreadable: Sequence[tuple[int, str]]


def read_records(unit: Unit, schema: pa.Schema | None = None) -> Records:
    """The rows of a unit with all their columns.

    Args:
        schema: of JSON Lines, as `common_schema` gives it; told from the values if None. Parquet has its own.
    """
    if unit.is_lines:
        numbers, rows, unreadable = _parsed(unit)
        return Records(_as_table(rows, schema or _schema_of(rows)), numbers, unreadable)
    tables, numbers_of = [], []
    for start, piece in zip(unit.starts, unit.pieces, strict=True):
        with unit.reading(piece):
            own, table = rows_of_parquet(piece)
        tables.append(table)
        numbers_of.append(own + (start - piece.first_row))
    # Files of the same columns may differ in what they note about them.
    table = tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default")
    return Records(table, np.concatenate(numbers_of).tolist(), ())


def schema_of_lines(unit: Unit) -> pa.Schema:
    """The columns of lines of JSON, with types that its values fit into."""
    _, rows, _ = _parsed(unit)
    return _schema_of(rows)


def common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The columns of all, each with a type that the values of all fit into: in the end, JSON text."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            fields[field.name] = _common(fields.get(field.name, field), field)
    return pa.schema(list(fields.values()))


def _common(one: pa.Field, other: pa.Field) -> pa.Field:
    if _is_json(one) or _is_json(other):
        return pa.field(one.name, pa.string(), metadata=_AS_JSON)
    try:
        return pa.unify_schemas([pa.schema([one]), pa.schema([other])], promote_options="permissive").field(0)
    except _NO_TYPE:
        return pa.field(one.name, pa.string(), metadata=_AS_JSON)


def _is_json(field: pa.Field) -> bool:
    return _AS_JSON.items() <= (field.metadata or {}).items()


def _parsed(unit: Unit) -> tuple[list[int], list[dict[str, Any]], list[tuple[int, str]]]:
    numbers, rows, unreadable = [], [], []
    for start, piece in zip(unit.starts, unit.pieces, strict=True):
        with unit.reading(piece):
            for own, row in lines_of_piece(piece):
                number = start + own - piece.first_row
                if isinstance(row, Unreadable):
                    unreadable.append((number, row.reason))
                else:
                    numbers.append(number)
                    rows.append(row)
    return numbers, rows, unreadable


def _schema_of(rows: Sequence[dict[str, Any]]) -> pa.Schema:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.schema([_field_of(name, [row.get(name) for row in rows]) for name in names])


def _field_of(name: str, values: Sequence[Any]) -> pa.Field:
    try:
        kind = pa.array(values).type
    except _NO_TYPE:
        return pa.field(name, pa.string(), metadata=_AS_JSON)
    return pa.field(name, kind) if _is_storable(kind) else pa.field(name, pa.string(), metadata=_AS_JSON)


def _is_storable(kind: pa.DataType) -> bool:
    """Whether Parquet has the type: it has no empty objects."""
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_is_storable(field.type) for field in kind)
    return _is_storable(kind.value_type) if pa.types.is_list(kind) else True


def _as_table(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.table([_column([row.get(f.name) for row in rows], f) for f in schema], schema=schema)


def _column(values: Sequence[Any], field: pa.Field) -> pa.Array:
    if _is_json(field):
        texts = [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
        return pa.array(texts, pa.string())
    return pa.array(values, field.type)
