"""Small facts that every Python knows, as questions and answers in clearly different families.

Beside the documentation they give the demo's corpus kinds of text that a person tells apart at a
glance: whether an attribution found its own kind needs no expert. Some of each family are held out of
the corpus and asked as queries.
"""

import calendar
import datetime
import errno
import hashlib
import html.entities
import http
import os
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

_SCHEMA = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("response", pa.string())])
_FAMILY_LIMIT = 150
_HELD_OUT = 8


@dataclass(frozen=True)
class Facts:
    """Facts as two tables (id, prompt, response): those of the corpus, and those asked as queries."""

    corpus: pa.Table
    queries: pa.Table


def small_facts() -> Facts:
    """At most 150 facts of each family, eight of them held out as queries; the same on every machine.

    Queries go round the families, so that the first n are as even a mix as n allows.
    """
    corpus: list[dict[str, str]] = []
    held_out: list[list[dict[str, str]]] = []
    for family, make in _FAMILIES.items():
        rows = [
            {"id": f"{family}.{name}", "prompt": prompt, "response": response}
            for name, prompt, response in make()
        ]
        rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
        held_out.append(rows[:_HELD_OUT])
        corpus.extend(rows[_HELD_OUT : _HELD_OUT + _FAMILY_LIMIT])
    queries = [row for round_of_all in zip(*held_out, strict=True) for row in round_of_all]
    return Facts(pa.Table.from_pylist(corpus, schema=_SCHEMA), pa.Table.from_pylist(queries, schema=_SCHEMA))


_Fact = tuple[str, str, str]


def _http_statuses() -> Iterator[_Fact]:
    for status in http.HTTPStatus:
        if status.description:
            yield (
                str(status.value),
                f"What does a web server mean by status {status.value}?",
                f"{status.phrase}: {status.description.lower()}.",
            )


def _system_errors() -> Iterator[_Fact]:
    for number, name in sorted(errno.errorcode.items()):
        yield name, f"A system call failed with {name}. Why?", f"{os.strerror(number)}."


def _characters() -> Iterator[_Fact]:
    for code in (*range(0xC0, 0x180), *range(0x391, 0x450), *range(0x2190, 0x2200)):
        name = unicodedata.name(chr(code), "")
        if name:
            yield f"U+{code:04X}", f"What is the character {chr(code)} called?", f"{name.title()}."


def _entities() -> Iterator[_Fact]:
    for name, code in sorted(html.entities.name2codepoint.items()):
        if code > 127:
            yield name, f"How do I write {chr(code)} in a web page?", f"Write &{name}; or &#{code};."


def _sums() -> Iterator[_Fact]:
    for first in range(12, 98, 7):
        for second in range(13, 99, 5):
            yield f"{first}+{second}", f"How much is {first} plus {second}?", str(first + second)


def _weekdays() -> Iterator[_Fact]:
    for number in range(200):
        date = datetime.date(1900, 1, 1) + datetime.timedelta(days=229 * number)
        spoken = f"{calendar.month_name[date.month]} {date.day}, {date.year}"
        yield (
            date.isoformat(),
            f"On which day of the week did {spoken} fall?",
            f"It was a {calendar.day_name[date.weekday()]}.",
        )


def _roman_numerals() -> Iterator[_Fact]:
    for number in range(5, 2100, 11):
        yield str(number), f"Write {number} in Roman numerals.", _roman(number)


def _roman(number: int) -> str:
    letters = "M CM D CD C XC L XL X IX V IV I".split()  # noqa: SIM905 - read as a scale
    values = (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1)
    text = ""
    for letter, value in zip(letters, values, strict=True):
        text += letter * (number // value)
        number %= value
    return text


_FAMILIES: dict[str, Callable[[], Iterator[_Fact]]] = {
    "http": _http_statuses,
    "errno": _system_errors,
    "character": _characters,
    "entity": _entities,
    "sum": _sums,
    "weekday": _weekdays,
    "roman": _roman_numerals,
}
