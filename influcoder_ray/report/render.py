"""The report's contents as one self-contained HTML page."""

import base64
import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from influcoder_ray.report import highlights, texts
from influcoder_ray.report.blocks import Page, QueryCards, Section, texts_of
from influcoder_ray.report.contents import Attribution, QueryPage, ReportContents, number
from influcoder_ray.report.sections import AFTER, BEFORE
from influcoder_ray.report.sections.head import headline, summary
from influcoder_ray.report.spans import Span, on_shown
from influcoder_ray.report.texts import middle_cut, one_line
from influcoder_ray.report.warnings import warnings_for
from influcoder_ray.report.wording import count, decimal, percentile

TEXT_BUDGET_BYTES = 1_050_000
"""For all examples' texts together, so that 40 queries of 10 hostile examples stay below 3 MB."""

LEAST_TEXT_BYTES = 1_200
"""What each text may take however many there are: a page of more queries is longer, never emptier."""


def render_html(contents: ReportContents, further: Sequence[Section] = ()) -> str:
    """The report as HTML text to be written as UTF-8.

    Args:
        further: sections that other stages have figures for; they stand behind the one on quality.
    """
    version = one_line(contents.influcoder_version, 40)
    page = Page(
        title=one_line(contents.title, 160) or "Attribution report",
        byline=f"Training-data attribution by influcoder-ray {version}. {summary(contents)}",
        warnings=tuple(warnings_for(contents)),
        headline=headline(contents),
        sections=(*(make(contents) for make in BEFORE), *further, *(make(contents) for make in AFTER)),
        footer=f"Written by influcoder-ray {version}. This file is complete in itself: it loads nothing from "
        "the network.",
    )
    return render_page(page)


def render_page(page: Page) -> str:
    """Any page as HTML text: no network, no script that it cannot do without.

    Every text of an example is treated as hostile: escaped, freed of hidden characters and cut. A page
    of 40 queries with 10 examples each stays below 3 MB whatever the texts are.
    """
    environment = _environment()
    all_blocks = [block for section in page.sections for block in section.blocks]
    sizes = [texts.shown_bytes(text) for block in all_blocks for text in texts_of(block)]
    parts = _Parts(
        limit=texts.allowance(sizes, TEXT_BUDGET_BYTES, LEAST_TEXT_BYTES),
        common=_common([it for it in all_blocks if isinstance(it, QueryCards)]),
    )
    # A page without rows to search has nothing for the script to do, and its policy allows none.
    script = environment.get_template("page.js.j2").render() if sizes else ""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return environment.get_template("report.html.j2").render(
        page=page,
        script=Markup(script),
        policy="default-src 'none'; style-src 'unsafe-inline'; "
        + (f"script-src 'sha256-{digest}'; " if script else "")
        + "img-src data:; base-uri 'none'; form-action 'none'",
        parts_of=parts.of,
        plain_parts=parts.plain,
        words_to_mark=parts.words_to_mark,
        bar=_bar,
        rank_width=_rank_width,
        one_line=one_line,
        middle_cut=middle_cut,
        count=count,
        decimal=decimal,
        percentile=percentile,
    )


@dataclass(frozen=True)
class TextParts:
    """One text as the page shows it, marks included: what is seen at once, the rest, what is left out."""

    head: Markup
    rest: Markup
    rest_characters: int
    left_out: int


@dataclass(frozen=True)
class ExampleParts:
    """An example's texts with their marks; None where there is none. `strongest` says the marks in words."""

    prompt: TextParts | None
    response: TextParts | None
    strongest: str


class _Parts:
    """Turns texts into what the page shows of them.

    Args:
        limit: bytes of each text.
        common: words that are not marked, since too many examples of the page hold them.
    """

    def __init__(self, limit: int, common: frozenset[str]) -> None:
        self._limit = limit
        self._common = common

    def words_to_mark(self, query: QueryPage) -> frozenset[str]:
        """The words of a query that are marked where its examples hold them too."""
        read = (query.prompt[: texts.READ_CHARACTERS], query.response[: texts.READ_CHARACTERS])
        return frozenset().union(*map(highlights.words_of, read)) - self._common

    def of(self, it: Attribution, shared: Collection[str]) -> ExampleParts:
        """An example with its influence marked where that is known, else with the `shared` words."""
        scale = highlights.strongest_contribution([*it.prompt_spans, *it.response_spans])
        if not scale:
            return ExampleParts(
                self._with_words(it.prompt, shared), self._with_words(it.response, shared), ""
            )
        told = highlights.strongest(((it.prompt, it.prompt_spans), (it.response, it.response_spans)))
        return ExampleParts(
            self._with_spans(it.prompt, it.prompt_spans, scale),
            self._with_spans(it.response, it.response_spans, scale),
            highlights.strongest_in_words(told),
        )

    def plain(self, text: str) -> TextParts | None:
        return self._cut(text, lambda part, _: escape(part))

    def _with_words(self, text: str, shared: Collection[str]) -> TextParts | None:
        return self._cut(text, lambda part, _: highlights.shared_words(part, shared))

    def _with_spans(self, text: str, spans: Sequence[Span], scale: float) -> TextParts | None:
        moved = on_shown(spans, texts.origins(text[: texts.READ_CHARACTERS]))
        return self._cut(text, lambda part, start: highlights.marked(part, moved, scale, start))

    def _cut(self, text: str, as_html: Callable[[str, int], Markup]) -> TextParts | None:
        if not text:
            return None
        cut = texts.shown(text, self._limit)
        return TextParts(as_html(cut.head, 0), as_html(cut.rest, cut.rest_start), len(cut.rest), cut.left_out)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("influcoder_ray.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["has_spans"] = lambda queries: any(_spans(queries))
    environment.filters["all_have_spans"] = lambda queries: all(_spans(queries))
    return environment


def _spans(queries: Iterable[QueryPage]) -> list[bool]:
    """Of each attribution whether its marks are those of influence."""
    shown = (it for query in queries for it in query.attributions)
    return [any(span.contribution for span in (*it.prompt_spans, *it.response_spans)) for it in shown]


def _common(cards: Sequence[QueryCards]) -> frozenset[str]:
    """Words that many of the examples on the page hold, each example counted once."""
    shown = {
        (it.prompt, it.response) for card in cards for query in card.queries for it in query.attributions
    }
    read = texts.READ_CHARACTERS
    return highlights.common_words([highlights.words_of(f"{p[:read]} {r[:read]}") for p, r in shown])


def _bar(score: float) -> str:
    known = number(score)
    return "0" if known is None else f"{min(abs(known), 1.0) * 100:.1f}"


def _rank_width(attributions: Sequence[Attribution]) -> int:
    """The characters of the widest rank, so that the columns of one ranking line up."""
    return max(len(count(it.rank)) for it in attributions)
