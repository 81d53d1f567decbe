"""The report's contents as one self-contained HTML page."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from influcoder_ray.report import sections, texts
from influcoder_ray.report.contents import Attribution, ReportContents, number
from influcoder_ray.report.texts import Shown, middle_cut, one_line
from influcoder_ray.report.warnings import warnings_for
from influcoder_ray.report.wording import count, decimal, percent, percentile

TEXT_BUDGET_BYTES = 1_800_000
"""For all examples' texts together, so that 40 queries of 10 hostile examples stay below 3 MB."""

LEAST_TEXT_BYTES = 1_500
"""What each text may take however many there are: a page of more queries is longer, never emptier."""

SECTIONS = (
    ("trust", "Trust"),
    ("quality", "Quality"),
    ("figures", "Figures"),
    ("queries", "Queries"),
    ("whole-set", "Whole query set"),
    ("run", "Run"),
    ("settings", "Settings"),
)


def render_html(contents: ReportContents) -> str:
    """The page as HTML text to be written as UTF-8: no network, no script that it cannot do without.

    Every text of an example is treated as hostile: escaped, freed of hidden characters and cut. A page
    of 40 queries with 10 examples each stays below 3 MB whatever the texts are.
    """
    environment = _environment()
    script = environment.get_template("filter.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    page_texts = list(_example_texts(contents))
    limit = texts.allowance(list(map(texts.shown_bytes, page_texts)), TEXT_BUDGET_BYTES, LEAST_TEXT_BYTES)

    def shown(text: str) -> Shown:
        return texts.shown(text, limit)

    return environment.get_template("report.html.j2").render(
        title=one_line(contents.title, 160) or "Attribution report",
        version=one_line(contents.influcoder_version, 40),
        summary=sections.summary(contents),
        sections=SECTIONS,
        warnings=warnings_for(contents),
        headline=sections.headline(contents),
        checks=sections.checks(contents),
        quality=sections.quality(contents.evaluation),
        leads=sections.leads(contents.evaluation),
        reranking=sections.reranking(contents.evaluation),
        figures=sections.drawings(contents),
        queries=contents.queries,
        order_note=sections.order_note(contents),
        query_familiarity=sections.query_familiarity,
        any_negative=any(it.score < 0 for it in contents.attributions()),
        groups=(
            ("Most influential", "What teaches this behaviour most.", contents.group),
            ("Least influential", "What points away from it, or has nothing to do with it.", contents.least),
        ),
        stage_columns=sections.STAGE_COLUMNS,
        stages=sections.stages(contents),
        truncation=contents.truncation,
        reasons=sections.quarantine_reasons(contents.quarantine_reasons),
        settings=texts.as_yaml(contents.settings),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        shown=shown,
        bar=_bar,
        rank_width=_rank_width,
        one_line=one_line,
        middle_cut=middle_cut,
        count=count,
        decimal=decimal,
        percent=percent,
        percentile=percentile,
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("influcoder_ray.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _example_texts(contents: ReportContents) -> Iterable[str]:
    for query in contents.queries:
        yield from (query.prompt, query.response)
    for it in contents.attributions():
        yield from (it.prompt, it.response)


def _bar(score: float) -> str:
    known = number(score)
    return "0" if known is None else f"{min(abs(known), 1.0) * 100:.1f}"


def _rank_width(attributions: Sequence[Attribution]) -> int:
    """The characters of the widest rank, so that the columns of one ranking line up."""
    return max(len(count(it.rank)) for it in attributions)
