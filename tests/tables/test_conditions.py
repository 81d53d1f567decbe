"""Conditions: what they say in a settings file, and what they refuse."""

import io
import math
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from pydantic import ValidationError

from influcoder_ray.tables.conditions import Condition, groups_that_may_match, matches


@pytest.mark.parametrize(
    ("given", "meaning"),
    [
        ("en", {"equals": "en"}),
        (3, {"equals": 3}),
        (False, {"equals": False}),
        (["a", "b"], {"one_of": ["a", "b"]}),
        ({"at_least": 0.8}, {"at_least": 0.8}),
        ({"at_least": date(2024, 1, 1), "below": "2025"}, {"at_least": "2024-01-01", "below": "2025"}),
        ([date(2024, 1, 1)], {"one_of": ["2024-01-01"]}),
    ],
)
def test_a_condition_is_replayed_as_it_was_meant(given: Any, meaning: dict[str, Any]) -> None:
    """Prevents a run's settings.yaml from naming other rows than the run had."""
    condition = Condition.model_validate(given)
    assert condition.model_dump(mode="json") == meaning
    assert Condition.model_validate(meaning) == condition


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "name a test with a value"),
        (None, "a condition is a value"),
        ([], "at least 1 item"),
        ({"none_of": [], "at_least": 1}, "at least 1 item"),
        ({"equals": "a", "at_least": 1}, "compares with number and text"),
        (["a", 1], "compares with number and text"),
        ({"at_least": True}, "true and false have no order"),
        ({"at_least": float("inf")}, "finite"),
        ({"equals": datetime(2024, 1, 1)}, "put a time into quotes"),
        ({"equal": 1}, "Extra inputs"),
        ({"equals": ["a"]}, "valid"),
    ],
)
def test_a_condition_that_says_nothing_or_two_things_is_refused(given: Any, message: str) -> None:
    """Prevents a misspelt test from letting every row through."""
    with pytest.raises(ValidationError, match=message):
        Condition.model_validate(given)


_NUMBERS = (-1.0, -0.0, 0.0, 1.0)


@drawn(
    cells=st.lists(st.sampled_from([*_NUMBERS, math.nan, None]), min_size=1, max_size=4),
    name=st.sampled_from(["equals", "one_of", "none_of", "at_least", "above", "at_most", "below"]),
    values=st.lists(st.sampled_from(_NUMBERS), min_size=1, max_size=2),
    kind=st.sampled_from([pa.float32(), pa.float64()]),
)
def test_numbers_meet_a_condition_in_parquet_as_in_lines(
    cells: list[float | None], name: str, values: list[float], kind: pa.DataType
) -> None:
    """Prevents rows of 0, -0 and NaN from being lost with a row group whose statistics do not name them."""
    condition = Condition.model_validate({name: values if name.endswith("_of") else values[0]})
    where, table = (("label", condition),), pa.table({"label": pa.array(cells, kind)})
    passed = [condition.admits(cell) for cell in cells]
    assert matches(where, table).to_pylist() == passed
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=1)
    groups = groups_that_may_match(where, stream)
    assert {row for row, own in enumerate(passed) if own} <= set(groups)
    stream = io.BytesIO()
    pq.write_table(table, stream)
    assert groups_that_may_match(where, stream) or not any(passed)
