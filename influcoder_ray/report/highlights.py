"""Marks in an example's text: tokens by what they add to its influence, or words that the query holds too."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from markupsafe import Markup, escape

from influcoder_ray.report.spans import Span
from influcoder_ray.report.texts import one_line
from influcoder_ray.report.wording import MINUS

LEVELS = (0.1, 0.25, 0.5, 0.75)
"""Shares of the strongest contribution from which the four shades begin; below the first there is no mark."""

MOST_MARKS = 64
"""In one text: marks weigh more than the text below them, and more of them show nothing."""

MOST_SHARED = 24
_TIMES_EACH = 3
_LEAST_LETTERS = 3
_COMMON_SHARE = 0.25
_LEAST_TEXTS = 12
_WORD = re.compile(r"[^\W_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}][^\W_]+)*")


@dataclass(frozen=True)
class Strongest:
    """A token that carries much of an example's influence: its text, and its signed share of all of it."""

    text: str
    share: float


def strongest_contribution(spans: Iterable[Span]) -> float:
    """The largest contribution of either sign, which has the deepest shade; 0 without any."""
    return max((abs(span.contribution) for span in spans), default=0.0)


def marked(text: str, spans: Sequence[Span], scale: float, offset: int = 0) -> Markup:
    """`text` as HTML in which spans of influence are marked, everything else escaped.

    A mark has the class `up1` to `up4` or, of a contribution below 0, `down1` to `down4`: the shade by the
    share of `scale` (see `LEVELS`). Of more than `MOST_MARKS` only the strongest are marked.

    Args:
        spans: of the text that `text` is a part of.
        scale: the strongest contribution of the whole example.
        offset: where in that text `text` begins.
    """
    told = sorted((s for s in spans if _level(s, scale)), key=lambda s: -abs(s.contribution))
    pieces, at = [], 0
    for span in sorted(told[:MOST_MARKS], key=lambda s: s.start):
        start, end = max(span.start - offset, at), min(span.end - offset, len(text))
        if start >= end:
            continue
        kind = f"{'up' if span.contribution > 0 else 'down'}{_level(span, scale)}"
        pieces += [escape(text[at:start]), Markup('<mark class="{}">{}</mark>').format(kind, text[start:end])]
        at = end
    return Markup("").join([*pieces, escape(text[at:])])


def strongest(texts: Iterable[tuple[str, Sequence[Span]]], amount: int = 5) -> list[Strongest]:
    """The spans that carry most, the strongest first: what the shades show, for those who cannot see them.

    Args:
        texts: the parts of one example (prompt, response) with their spans.
    """
    found = [(text, span) for text, spans in texts for span in spans if span.contribution]
    total = sum(abs(span.contribution) for _, span in found)
    found.sort(key=lambda it: -abs(it[1].contribution))
    # A token may be nothing but blanks: as many are cleaned as it takes to have some that can be named.
    named = ((one_line(text[s.start : s.end], 40), s.contribution / total) for text, s in found)
    return [Strongest(*it) for it in islice((it for it in named if it[0]), amount)]


def strongest_in_words(told: Sequence[Strongest]) -> str:
    """The same as a sentence; empty where nothing contributes."""
    if not told:
        return ""
    parts = (
        f"\N{LEFT DOUBLE QUOTATION MARK}{it.text}\N{RIGHT DOUBLE QUOTATION MARK} "
        f"{'+' if it.share > 0 else MINUS}{abs(it.share):.0%}"
        for it in told
    )
    return f"The strongest tokens, each with its share of all: {', '.join(parts)}."


def shared_words(text: str, words: Collection[str]) -> Markup:
    """`text` as HTML in which the first of these `words` (case-folded) are marked, each up to three times."""
    pieces, at, seen = [], 0, Counter[str]()
    for match in _WORD.finditer(text):
        word = match.group().casefold()
        if word not in words or seen[word] == _TIMES_EACH or seen.total() == MOST_SHARED:
            continue
        seen[word] += 1
        pieces += [escape(text[at : match.start()]), Markup("<mark>{}</mark>").format(match.group())]
        at = match.end()
    return Markup("").join([*pieces, escape(text[at:])])


def words_of(text: str) -> frozenset[str]:
    """The different words of a text, case-folded, that are long enough to mean something."""
    return frozenset(
        word.casefold() for word in _WORD.findall(text) if len(word) >= _LEAST_LETTERS or word.isdecimal()
    )


def common_words(texts: Sequence[frozenset[str]]) -> frozenset[str]:
    """Words that more than a quarter of the texts hold: that two texts share them says nothing.

    Args:
        texts: the words of each text; of few texts no word can be called common.
    """
    if len(texts) < _LEAST_TEXTS:
        return frozenset()
    held = Counter(word for words in texts for word in words)
    return frozenset(word for word, times in held.items() if times > _COMMON_SHARE * len(texts))


def _level(span: Span, scale: float) -> int:
    """The shade, 1 to 4; 0 for none."""
    size = abs(span.contribution)
    return sum(size >= least * scale for least in LEVELS) if size else 0
