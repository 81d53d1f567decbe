"""Conditions: what they say in a settings file, and what they refuse."""

from datetime import date, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from influcoder_ray.tables.conditions import Condition


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
