"""Fields within columns: `meta.source` is the field `source` of the column `meta`.

A column, or a field, whose own name has a dot in it goes before one within another.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

# What `value_at` gives, if asked to, where there is no such field; null is a value.
ABSENT = object()


def value_at(row: Mapping[str, Any], name: str, otherwise: Any = None) -> Any:
    """What a line's object holds in a column, or in a field within one; a field of null is null."""
    if name in row:
        return row[name]
    for outer, inner in _cuts(name):
        within = row.get(outer, ABSENT)
        if within is None:
            return None
        if isinstance(within, dict):
            found = value_at(within, inner, ABSENT)
            if found is not ABSENT:
                return found
    return otherwise


def path_in(fields: pa.Schema | pa.StructType, name: str) -> tuple[str, ...]:
    """The column's name and those of the fields down to the one that is meant; empty where there is none."""
    if name in fields.names:
        return (name,)
    for outer, inner in _cuts(name):
        if outer in fields.names and pa.types.is_struct(fields.field(outer).type):
            path = path_in(fields.field(outer).type, inner)
            if path:
                return (outer, *path)
    return ()


def may_hold(columns: Collection[str], name: str) -> bool:
    """Whether what is meant may lie in one of these columns: it is one, or a field within one."""
    return name in columns or any(outer in columns for outer, _ in _cuts(name))


def columns_with(schema: pa.Schema, names: Iterable[str]) -> list[str]:
    """The columns that are meant, or that have the fields that are meant, once each.

    Raises:
        KeyError: there is none.
    """
    return list(dict.fromkeys(existing_path(schema, name)[0] for name in names))


def existing_path(schema: pa.Schema, name: str) -> tuple[str, ...]:
    """What `path_in` gives.

    Raises:
        KeyError: there is no such column.
    """
    path = path_in(schema, name)
    if not path:
        raise KeyError(f"there is no column {name!r}")
    return path


def type_at(schema: pa.Schema, path: tuple[str, ...]) -> pa.DataType:
    """The type of a column, or of a field within one."""
    kind = schema.field(path[0]).type
    for name in path[1:]:
        kind = kind.field(name).type
    return kind


def column_at(table: pa.Table, path: tuple[str, ...]) -> pa.ChunkedArray:
    """A column (N,), or a field within one; a field of null is null."""
    column = table.column(path[0])
    return pc.struct_field(column, list(path[1:])) if path[1:] else column


def says_fields(schema: pa.Schema) -> str:
    """The columns for a person, each with the fields within it."""
    return ", ".join(_spoken(field) for field in schema)


def _spoken(field: pa.Field) -> str:
    if not pa.types.is_struct(field.type):
        return str(field.name)
    return f"{field.name} ({', '.join(_spoken(inner) for inner in field.type)})"


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """What stands before and behind each dot."""
    for place, character in enumerate(name):
        if character == ".":
            yield name[:place], name[place + 1 :]
