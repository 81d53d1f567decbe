"""Numbers read as what they are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.report.wording import count, decimal, duration, percent, percentile, rate

quick = settings(max_examples=50, deadline=None)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.5", True])
def test_what_is_no_number_is_a_dash(value: object) -> None:
    """Prevents "nan" and "None" on a page that people read."""
    assert {form(value) for form in (decimal, count, percent, percentile, rate, duration)} == {"\N{EN DASH}"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.7412, "0.741"), (-0.02, "\N{MINUS SIGN}0.020"), (-0.0001, "0.000"), (1, "1.000")],
)
def test_a_decimal_has_a_true_minus_and_no_negative_nought(value: float, expected: str) -> None:
    """Prevents "-0.000", which looks like a sign that means something."""
    assert decimal(value) == expected


@given(st.floats(0, 1))
@quick
def test_a_percentage_is_nought_or_all_only_when_it_is(share: float) -> None:
    """Prevents 3 lost rows in a million from reading as none, or 99.99% truncated as all."""
    assert (percent(share) == "0%") is (share == 0)
    assert (percent(share) == "100%") is (100 * share == 100)


@given(st.floats(0, 100))
@quick
def test_a_percentile_is_never_rounded_up(value: float) -> None:
    """Prevents the second of a corpus from standing above all of it."""
    assert float(percentile(value)) <= value + 1e-5


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (41.3, "41 s"),
        (59.7, "1 min 00 s"),
        (192, "3 min 12 s"),
        (18_120, "5 h 02 min"),
    ],
)
def test_a_duration_is_told_in_the_units_that_matter(seconds: float, expected: str) -> None:
    """Prevents "60 s" beside "1 min" and hours told in seconds."""
    assert duration(seconds) == expected


def test_the_second_of_a_web_scale_corpus_is_not_above_all() -> None:
    """Prevents a row of which another is better from reading as above 100 per cent of the corpus."""
    assert percentile(100 * (1 - 1 / 20_000_000)) == "99.99"
    assert percentile(100.0) == "100"
