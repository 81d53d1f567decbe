"""Texts of unknown origin are fit to be shown."""

import unicodedata

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import escape

from influcoder_ray.report.texts import (
    HEAD_CHARACTERS,
    HEAD_LINES,
    REST_CHARACTERS,
    allowance,
    as_yaml,
    middle_cut,
    one_line,
    printable,
    shown,
    shown_bytes,
)

quick = settings(max_examples=50, deadline=None)
any_text = st.text(st.characters(), max_size=3000) | st.text("a \n&<\"'\U0001f600\x00\u202e", max_size=6000)
NO_LIMIT = 10**9


@given(any_text)
@quick
def test_what_is_shown_holds_no_control_override_or_surrogate(text: str) -> None:
    """Prevents NULs, terminal escapes and right-to-left overrides from reaching the page."""
    clean = printable(text)
    clean.encode("utf-8")
    hidden = {c for c in clean if unicodedata.category(c) in ("Cc", "Cf", "Cs")}
    assert hidden <= set("\n\t\u200c\u200d\u200e\u200f")


def test_ordinary_text_in_any_script_is_left_as_it_is() -> None:
    """Prevents cleaning from damaging code, accents, emoji sequences or right-to-left words."""
    text = "def f(x):\n\treturn x  # é ü 漢字 שלום\n\n\U0001f469\u200d\U0001f4bb \ufffd <b>"
    assert printable(text) == text


@given(any_text)
@quick
def test_a_cut_text_keeps_its_words_in_order_and_its_limits(text: str) -> None:
    """Prevents a cut that loses or repeats words between the head and the rest."""
    cut = shown(text, NO_LIMIT)
    assert len(cut.head) <= HEAD_CHARACTERS + HEAD_CHARACTERS // 10
    assert cut.head.count("\n") < HEAD_LINES
    assert len(cut.rest) <= REST_CHARACTERS
    whole = "".join(printable(text)[: HEAD_CHARACTERS + REST_CHARACTERS].split())
    assert "".join((cut.head + cut.rest).split()) == whole
    assert (cut.left_out > 0) is (len(printable(text)) > HEAD_CHARACTERS + REST_CHARACTERS)


@given(any_text, st.integers(0, 5000))
@quick
def test_a_text_never_takes_more_bytes_than_it_may(text: str, max_bytes: int) -> None:
    """Prevents texts that grow under escaping from making the page too large to mail."""
    cut = shown(text, max_bytes)
    assert len(str(escape(cut.head + cut.rest)).encode()) <= max_bytes
    if shown_bytes(text) <= max_bytes:
        assert cut == shown(text, NO_LIMIT)


def test_five_megabytes_are_cut_and_the_rest_is_counted() -> None:
    """Prevents one runaway example from being the page, and from looking complete."""
    cut = shown("word " * 1_000_000, NO_LIMIT)
    assert len(cut.head) + len(cut.rest) <= HEAD_CHARACTERS + REST_CHARACTERS
    assert cut.left_out >= 5_000_000 - HEAD_CHARACTERS - REST_CHARACTERS - 10


@given(st.lists(st.integers(0, 4000), max_size=60), st.integers(0, 100_000), st.integers(0, 500))
@quick
def test_the_allowance_spends_the_budget_and_no_more(sizes: list[int], budget: int, least: int) -> None:
    """Prevents a page beyond its budget, and texts cut although there was room for them."""
    limit = allowance(sizes, budget, least)
    assert limit >= least
    if limit > least:
        assert sum(min(size, limit) for size in sizes) <= budget
    if any(size > limit for size in sizes):
        assert sum(min(size, limit + 1) for size in sizes) > budget


@given(any_text, st.integers(2, 200))
@quick
def test_names_stay_on_one_line_of_the_given_length(text: str, limit: int) -> None:
    """Prevents a hostile id or path from breaking the layout."""
    for line in (one_line(text, limit), middle_cut(text, limit)):
        assert len(line) <= limit
        assert "\n" not in line


def test_a_long_path_keeps_its_beginning_and_its_row() -> None:
    """Prevents a source that no longer says which file and row it names."""
    cut = middle_cut("s3://bucket/" + "deep/" * 60 + "part-7.parquet:123", 60)
    assert cut.startswith("s3://bucket")
    assert cut.endswith("part-7.parquet:123")


def test_settings_are_yaml_that_reads_back() -> None:
    """Prevents settings shown in a form that cannot be pasted into a file."""
    settings_shown = {"b": 1, "a": {"path": "x: y", "rates": (0.1, None)}, "flag": True}
    assert yaml.safe_load(as_yaml(settings_shown)) == {
        "b": 1,
        "a": {"path": "x: y", "rates": [0.1, None]},
        "flag": True,
    }
