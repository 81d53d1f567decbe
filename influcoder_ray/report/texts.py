"""Other people's texts, made fit to be shown: no hidden characters, no page-long rows, no megabytes."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from markupsafe import escape

HEAD_CHARACTERS = 600
HEAD_LINES = 14
REST_CHARACTERS = 4_000

# Far more than a page shows, so that a text of megabytes costs no more to clean than a page.
READ_CHARACTERS = 16_000

# Joiners shape emoji and several scripts, and the two direction marks only nudge their neighbours;
# every other format character (overrides, isolates, tags, byte order marks) hides or reorders text.
KEPT = frozenset("\n\t\u200c\u200d\u200e\u200f")

_LINE_END = re.compile("\r\n?|[\u2028\u2029\u0085\x0b\x0c]")
_BLANK_RUN = re.compile(r"\n[ \t]*(?:\n[ \t]*){2,}")


@dataclass(frozen=True)
class Shown:
    """A text as the page shows it: the head at once, the rest on request, and how much is left out.

    `rest_start` is where the rest begins in the cleaned text, which the head begins.
    """

    head: str
    rest: str
    left_out: int
    rest_start: int = 0


def printable(text: str) -> str:
    """`text` without control, format and non-characters; line ends are newlines, blank runs one line.

    Lone surrogates, which no file could hold, become U+FFFD.
    """
    return _BLANK_RUN.sub("\n\n", _LINE_END.sub("\n", text).translate(_DISPLAYED)).strip("\n")


def origins(text: str) -> list[int]:
    """For each character of `printable(text)` the place in `text` that it comes from, rising."""
    ends = list(_LINE_END.finditer(text))
    dropped = {at for end in ends for at in range(end.start() + 1, end.end())}
    at_end = {end.start() for end in ends}
    places = [
        at
        for at, character in enumerate(text)
        if at not in dropped and (at in at_end or _DISPLAYED[ord(character)] is not None)
    ]
    clean = _LINE_END.sub("\n", text).translate(_DISPLAYED)
    for run in reversed(list(_BLANK_RUN.finditer(clean))):
        del places[run.start() + 2 : run.end()]
    clean = _BLANK_RUN.sub("\n\n", clean)
    first = len(clean) - len(clean.lstrip("\n"))
    return places[first : len(clean.rstrip("\n"))]


class _Displayed(dict[int, int | None]):
    """A table for `str.translate` that works out each character's place once: None drops it."""

    def __missing__(self, code: int) -> int | None:
        character = chr(code)
        category = unicodedata.category(character)
        noncharacter = (code & 0xFFFE) == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
        kept: int | None = code
        if category == "Cs":
            kept = 0xFFFD
        elif noncharacter or (category in ("Cc", "Cf") and character not in KEPT):
            kept = None
        self[code] = kept
        return kept


_DISPLAYED = _Displayed()


def one_line(text: str, limit: int) -> str:
    """`text` on one line of at most `limit` characters."""
    line = " ".join(printable(text[: 8 * limit]).split())
    if len(line) > limit or (len(text) > 8 * limit and line):
        return line[: limit - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return line


def middle_cut(text: str, limit: int) -> str:
    """`text` on one line, cut in the middle: of a path, both the place and the name matter."""
    if len(text) > 8 * limit:
        text = text[: 4 * limit] + text[-4 * limit :]
    line = " ".join(printable(text).split())
    if len(line) <= limit:
        return line
    tail = (limit - 1) * 2 // 3
    return line[: limit - 1 - tail] + "\N{HORIZONTAL ELLIPSIS}" + line[len(line) - tail :]


def shown(text: str, max_bytes: int) -> Shown:
    """Cut `text` to what the page shows, at most `max_bytes` of escaped UTF-8 in all."""
    clean = printable(text[:READ_CHARACTERS])
    kept = _fitting(clean[: HEAD_CHARACTERS + REST_CHARACTERS], max_bytes)
    end = _head_end(kept)
    head, rest = kept[:end], kept[end:]
    # Characters of the original that cleaning would drop too are counted: the number is an upper bound.
    beyond = max(len(text) - READ_CHARACTERS, 0)
    rest_start = end + len(rest) - len(rest.lstrip("\n"))
    return Shown(head.rstrip(), rest.strip("\n"), len(clean) - len(kept) + beyond, rest_start)


def shown_bytes(text: str) -> int:
    """The bytes of escaped UTF-8 that `text` would take on a page without a limit in bytes."""
    return _escaped_bytes(printable(text[:READ_CHARACTERS])[: HEAD_CHARACTERS + REST_CHARACTERS])


def allowance(sizes: Sequence[int], budget: int, least: int) -> int:
    """The largest limit L, not below `least`, with sum(min(size, L)) <= `budget`.

    Short texts leave their unused share to long ones.
    """
    left = budget
    for position, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - position)
        if size > share:
            return max(share, least)
        left -= size
    return max([*sizes, least])


def as_yaml(settings: Any, limit: int = 40_000) -> str:
    """Settings as YAML with their order kept; what YAML has no word for is written as text."""
    text = yaml.safe_dump(_plain(settings), sort_keys=False, allow_unicode=True, width=100)
    clean = printable(text)
    return clean if len(clean) <= limit else clean[:limit] + "\n\N{HORIZONTAL ELLIPSIS}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)


def _escaped_bytes(text: str) -> int:
    return len(str(escape(text)).encode("utf-8"))


def _fitting(text: str, max_bytes: int) -> str:
    if _escaped_bytes(text) <= max_bytes:
        return text
    lengths = range(len(text))
    return text[: bisect_right(lengths, max_bytes, key=lambda length: _escaped_bytes(text[:length])) - 1]


def _head_end(text: str) -> int:
    """Where the head of `text` ends: at the limit in characters or lines, at a word's end if one is near."""
    end = min(len(text), HEAD_CHARACTERS)
    lines = [match.start() for match in re.finditer("\n", text[:end])]
    if len(lines) >= HEAD_LINES:
        return lines[HEAD_LINES - 1]
    if end == len(text) or len(text) - end < HEAD_CHARACTERS // 10:
        # A few words behind a click would annoy more than they save.
        return len(text) if text.count("\n") < HEAD_LINES else end
    border = max(text.rfind(" ", 0, end), text.rfind("\n", 0, end))
    return border if border > end - 60 else end
