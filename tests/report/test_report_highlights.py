"""Marks stand where they were computed, whatever the text is, and can be read without seeing them."""

import html
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.report.highlights import (
    LEVELS,
    MOST_MARKS,
    common_words,
    marked,
    shared_words,
    strongest,
    strongest_contribution,
    strongest_in_words,
    words_of,
)
from influcoder_ray.report.spans import Span, on_shown
from influcoder_ray.report.texts import origins, printable

TEXTS = st.text(st.characters(), max_size=60) | st.text("ab \t\n\r\u2028\x00\u202e<&\"'", max_size=60)
many = settings(max_examples=150, deadline=None)


def _tags_off(marks: str) -> str:
    return html.unescape(re.sub(r"</?mark[^>]*>", "", marks))


@st.composite
def texts_with_spans(draw: st.DrawFn) -> tuple[str, list[Span]]:
    text = draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=60))
    borders = sorted(draw(st.sets(st.integers(0, len(text)), max_size=10)))
    values = st.floats(-1, 1)
    return text, [Span(a, b, draw(values)) for a, b in zip(borders[::2], borders[1::2], strict=False)]


@given(texts_with_spans())
@many
def test_marks_change_nothing_of_the_text(case: tuple[str, list[Span]]) -> None:
    """Prevents a highlighted example that is not the example, or one that runs as code."""
    text, spans = case
    source = str(marked(text, spans, strongest_contribution(spans)))
    assert _tags_off(source) == text
    assert set(re.findall(r"<[^>]*>", source)) <= {
        "</mark>",
        *(f'<mark class="{side}{n}">' for side in ("up", "down") for n in (1, 2, 3, 4)),
    }


@given(texts_with_spans(), st.data())
@many
def test_a_text_in_two_parts_has_the_marks_of_the_whole(
    case: tuple[str, list[Span]], data: st.DataObject
) -> None:
    """Prevents marks from moving in the part of a text that a reader opens."""
    text, spans = case
    cut = data.draw(st.integers(0, len(text)))
    scale = strongest_contribution(spans)
    parts = marked(text[:cut], spans, scale) + marked(text[cut:], spans, scale, offset=cut)
    assert _tags_off(parts) == text

    def shades(source: str) -> list[str]:
        found: list[str] = []
        for tag, words in re.findall(r'(?:<mark class="(\w+)">)?((?:[^<])+)(?:</mark>)?', source):
            found += [tag] * len(html.unescape(words))
        return found

    assert shades(str(parts)) == shades(str(marked(text, spans, scale)))


def test_the_shade_is_the_share_of_the_strongest_and_the_side_is_the_sign() -> None:
    """Prevents a token that pulls away from looking like one that helps, and noise from being shaded."""
    spans = [Span(n, n + 1, value) for n, value in enumerate((2.0, 1.0, -0.5, 0.2, 0.19, -1.5))]
    assert str(marked("abcdef", spans, 2.0)) == (
        '<mark class="up4">a</mark><mark class="up3">b</mark><mark class="down2">c</mark>'
        '<mark class="up1">d</mark>e<mark class="down4">f</mark>'
    )
    assert LEVELS[0] > 0
    assert str(marked("ab", [Span(0, 1, 0.0)], 0.0)) == "ab"


def test_of_very_many_marks_the_strongest_are_kept() -> None:
    """Prevents a page of megabytes of marks, and the cut from falling on the strongest token."""
    spans = [Span(n, n + 1, 0.5 + n / 1000) for n in range(400)]
    source = str(marked("x" * 400, spans, 1.0))
    assert source.count("<mark") == MOST_MARKS
    assert source.endswith("</mark>")


def test_the_strongest_parts_are_said_in_words() -> None:
    """Prevents highlights that only those who see colours can read."""
    spans = [Span(0, 5, 3.0), Span(6, 10, -1.0)]
    told = strongest([("Paris then", spans), ("x", [])], amount=5)
    said = strongest_in_words(told)
    assert said.startswith("The strongest tokens, each with its share of all: ")
    assert re.findall(r"(\w+)\W (.\d+%)", said) == [("Paris", "+75%"), ("then", "\N{MINUS SIGN}25%")]
    assert strongest_in_words(strongest([("abc", [Span(0, 1, 0.0)])])) == ""


@pytest.mark.parametrize("fields", [(1, 1, 0.0), (-1, 2, 0.0), (0, 1, float("nan")), (0, 1, float("inf"))])
def test_what_is_no_span_is_refused(fields: tuple[int, int, float]) -> None:
    """Prevents marks at nowhere, and one undefined contribution from shading all others."""
    with pytest.raises(ValueError, match=r"span|finite"):
        Span(*fields)


@given(TEXTS)
@many
def test_each_character_that_is_shown_has_its_origin(text: str) -> None:
    """Prevents marks that slip where hidden characters or blank lines are left out of a text."""
    clean, places = printable(text), origins(text)
    assert len(places) == len(clean)
    assert all(one < other for one, other in pairwise(places))
    for character, place in zip(clean, places, strict=True):
        assert character in (text[place], "\n", "\ufffd")


def test_spans_follow_the_characters_that_are_shown() -> None:
    """Prevents a mark on the neighbour of the token that it belongs to."""
    text = "\x00a\r\n\n\n\nb\u202ecd"
    assert printable(text) == "a\n\nbcd"
    spans = [Span(1, 2, 1.0), Span(7, 8, 2.0), Span(8, 9, 3.0), Span(9, 11, 4.0)]
    assert on_shown(spans, origins(text)) == [Span(0, 1, 1.0), Span(3, 4, 2.0), Span(4, 6, 4.0)]


@given(TEXTS, st.frozensets(st.sampled_from(["a", "aa", "ab", "b"])))
@many
def test_marked_words_change_nothing_of_the_text(text: str, words: frozenset[str]) -> None:
    """Prevents a shared word from breaking the text that it stands in."""
    source = str(shared_words(text, words))
    assert _tags_off(source) == text
    assert {word.casefold() for word in re.findall("<mark>([^<]*)</mark>", source)} <= words


def test_shared_words_are_whole_and_mean_something() -> None:
    """Prevents marks on every "a", on parts of words, and on what all examples of the page hold."""
    words = words_of("How do I sort a LIST of 12 names?")
    assert {"sort", "list", "12", "names", "how"} <= words
    assert not {"a", "i", "do", "of"} & words
    assert str(shared_words("Lists: sort the list & resort", words)) == (
        "Lists: <mark>sort</mark> the <mark>list</mark> &amp; resort"
    )
    texts = [words_of(f"how to number{n}") for n in range(10)]
    assert common_words(texts) == frozenset()
    assert common_words(texts + texts) == {"how"}
