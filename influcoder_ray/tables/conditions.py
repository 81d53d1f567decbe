"""Conditions on columns: which rows of a data set are read at all."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from functools import reduce
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    field_validator,
    model_serializer,
    model_validator,
)

from influcoder_ray.spec import Spec
from influcoder_ray.tables.fields import column_at, existing_path, type_at, value_at
from influcoder_ray.tables.json_lines import kind_of

Value = StrictBool | StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)] | StrictStr

_IS_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
_ORDERS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], bool]]] = {
    "at_least": (pc.greater_equal, operator.ge),
    "above": (pc.greater, operator.gt),
    "at_most": (pc.less_equal, operator.le),
    "below": (pc.less, operator.lt),
}


class Condition(Spec):
    """What a cell has to be for its row to be read; of several tests all must hold, and null passes none.

    In a settings file a value alone stands for `equals` and a list for `one_of`. Text is compared by its
    characters' codes, so that dates which are written year first are in order. Of a column of dates or times
    the values are ISO dates or times; where they name no zone they are UTC.
    """

    equals: Value | None = Field(default=None, description="The cell is this value.")
    one_of: tuple[Value, ...] | None = Field(
        default=None, min_length=1, description="The cell is one of these values."
    )
    none_of: tuple[Value, ...] | None = Field(
        default=None, min_length=1, description="The cell is none of these values."
    )
    at_least: Value | None = Field(default=None, description="The cell is this value or greater.")
    above: Value | None = Field(default=None, description="The cell is greater than this value.")
    at_most: Value | None = Field(default=None, description="The cell is this value or less.")
    below: Value | None = Field(default=None, description="The cell is less than this value.")

    @model_validator(mode="before")
    @classmethod
    def _from_values(cls, given: Any) -> Any:
        if isinstance(given, Mapping | Condition):
            return given
        if given is None:
            raise ValueError("a condition is a value, a list of values, or tests such as at_least: 0.8")
        return {"one_of": given} if isinstance(given, list | tuple) else {"equals": given}

    @field_validator("*", mode="before")
    @classmethod
    def _dates_as_text(cls, given: Any) -> Any:
        """YAML makes dates of what looks like one; as text they replay, and fit columns of text too."""
        return [_undated(each) for each in given] if isinstance(given, list | tuple) else _undated(given)

    @model_validator(mode="after")
    def _of_one_kind(self) -> "Condition":
        kinds = {kind_of(value) for value in self._values()}
        if not kinds:
            raise ValueError(f"name a test with a value: {', '.join(type(self).model_fields)}")
        if len(kinds) > 1:
            raise ValueError(f"compares with {' and '.join(sorted(kinds))}; give values of one kind")
        if kinds == {"boolean"} and any(getattr(self, name) is not None for name in _ORDERS):
            raise ValueError("true and false have no order; use equals")
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}

    def __str__(self) -> str:
        tests = self.model_dump(mode="json").items()
        return " and ".join(f"{name.replace('_', ' ')} {value!r}" for name, value in tests)

    @property
    def kind(self) -> str:
        """What it compares with: text, number or boolean."""
        return kind_of(next(self._values()))

    def admits(self, cell: Any) -> bool:
        """Whether a cell of a JSON line passes; what is of another kind passes no more than null does."""
        if kind_of(cell) != self.kind:
            return False
        if self.equals is not None and cell != self.equals:
            return False
        if self.one_of is not None and cell not in self.one_of:
            return False
        if self.none_of is not None and cell in self.none_of:
            return False
        bounds = [(test, getattr(self, name)) for name, (_, test) in _ORDERS.items()]
        return all(bound is None or test(cell, bound) for test, bound in bounds)

    def unfit_value(self, kind: pa.DataType) -> Value | None:
        """The first of its values that a Parquet column of a type could never hold; None where all fit."""
        kind = plain(kind)
        if pa.types.is_null(kind):
            return None
        return next((value for value in self._values() if not _fits(value, kind)), None)

    def test(self, column: Any, kind: pa.DataType) -> Any:
        """The test of a column of a plain type as pyarrow computes it: an array of it, or an expression.

        Null comes out as null or false.
        """

        def scalar(value: Value) -> pa.Scalar:
            return _scalar(value, kind)

        def among(values: Sequence[Value]) -> Any:
            if pa.types.is_floating(kind):
                # `is_in` takes 0 and -0 for two values; files' statistics take either for the other.
                return reduce(pc.or_kleene, [pc.equal(column, scalar(value)) for value in values])
            return pc.is_in(column, value_set=pa.array([scalar(value) for value in values], kind))

        tests = []
        if self.equals is not None:
            tests.append(pc.equal(column, scalar(self.equals)))
        if self.one_of is not None:
            tests.append(among(self.one_of))
        if self.none_of is not None:
            tests.append(pc.and_kleene(pc.is_valid(column), pc.invert(among(self.none_of))))
        for name, (compared, _) in _ORDERS.items():
            bound = getattr(self, name)
            if bound is not None:
                tests.append(compared(column, scalar(bound)))
        return reduce(pc.and_kleene, tests)

    def told_by_statistics(self, kind: pa.DataType) -> "Condition | None":
        """The tests that the statistics of a column of a plain type can rule out; None where there is none.

        Statistics pass over NaN, which is none of any values.
        """
        if self.none_of is None or not pa.types.is_floating(kind):
            return self
        others = self.model_copy(update={"none_of": None})
        return None if next(others._values(), None) is None else others

    def _values(self) -> Iterator[Value]:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is not None:
                yield from value if isinstance(value, tuple) else (value,)


# Columns, or fields within them, and the conditions on them, all of which must hold.
Where = tuple[tuple[str, Condition], ...]


def admits(where: Where, row: Mapping[str, Any]) -> bool:
    """Whether all conditions hold for the object that a line of JSON holds."""
    return all(condition.admits(value_at(row, name)) for name, condition in where)


def matches(where: Where, table: pa.Table) -> pa.ChunkedArray:
    """For which rows (N,) of a table all conditions hold."""
    found = []
    for name, condition in where:
        column = column_at(table, existing_path(table.schema, name))
        kind = plain(column.type)
        if pa.types.is_null(kind):
            found.append(pa.chunked_array([pa.nulls(len(column), pa.bool_())]))
        else:
            if kind != column.type:
                # Unchecked: what is no UTF-8 is no other value either.
                column = column.cast(kind, safe=False)
            found.append(condition.test(column, kind))
    return pc.fill_null(reduce(pc.and_kleene, found), False)


def groups_that_may_match(where: Where, stream: Any) -> tuple[int, ...]:
    """The row groups of an open Parquet file whose statistics do not rule out that all conditions hold."""
    fragment = ds.ParquetFileFormat().make_fragment(pa.PythonFile(stream, mode="r"))
    schema = fragment.physical_schema
    tests = [pc.scalar(True)]
    for name, condition in where:
        path = existing_path(schema, name)
        own = type_at(schema, path)
        kind = plain(own)
        if pa.types.is_null(kind):
            return ()
        told = condition.told_by_statistics(kind)
        if told is not None:
            column = pc.field(*path) if kind == own else pc.field(*path).cast(kind)
            tests.append(told.test(column, kind))
    found = fragment.subset(filter=reduce(pc.and_kleene, tests), schema=schema)
    return tuple(group.id for group in found.row_groups)


def plain(kind: pa.DataType) -> pa.DataType:
    """The type as which a column is compared: pyarrow has no comparison for each way to keep text."""
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    return pa.float32() if pa.types.is_float16(kind) else kind


def _undated(value: Any) -> Any:
    if isinstance(value, datetime):
        raise ValueError("put a time into quotes, so that it stays as it is written")
    return value.isoformat() if isinstance(value, date) else value


def _fits(value: Value, kind: pa.DataType) -> bool:
    try:
        _scalar(value, kind)
    except (ValueError, TypeError, InvalidOperation, OverflowError, pa.ArrowException):
        return False
    return True


def _scalar(value: Value, kind: pa.DataType) -> pa.Scalar:
    """A value as one of a column's plain type.

    Raises:
        ValueError: it is none; so do others, for numbers too large and texts that are no dates.
    """
    if isinstance(value, bool) and pa.types.is_boolean(kind):
        return pa.scalar(value, kind)
    if isinstance(value, str) and any(test(kind) for test in _IS_TEXT):
        return pa.scalar(value, kind)
    if isinstance(value, str) and pa.types.is_date(kind):
        return pa.scalar(date.fromisoformat(value), kind)
    if isinstance(value, str) and pa.types.is_timestamp(kind):
        time = datetime.fromisoformat(value)
        return pa.scalar(time if time.tzinfo else time.replace(tzinfo=UTC), kind)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if pa.types.is_decimal(kind):
            return pa.scalar(Decimal(str(value)), kind)
        if pa.types.is_floating(kind):
            return pa.scalar(float(value), kind)
        if pa.types.is_integer(kind) and float(value).is_integer():
            return pa.scalar(int(value), kind)
    raise ValueError(f"{value!r} is no {kind}")
