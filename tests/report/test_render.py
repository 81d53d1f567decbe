"""The page is complete, self-contained, safe against the texts that it shows, and readable."""

import base64
import hashlib
import html
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.report.blocks import Cell, Row, Section, Table
from influcoder_ray.report.contents import (
    Attribution,
    QueryFamiliarity,
    QueryPage,
    ReportContents,
    StageRow,
    Truncation,
)
from influcoder_ray.report.render import render_html
from influcoder_ray.report.spans import Span
from influcoder_ray.report.warnings import warnings_for

MakeContents = Callable[..., ReportContents]

NO_FIGURES = {
    "epochs": (),
    "predicted": np.zeros((0, 0)),
    "exact": np.zeros((0, 0)),
    "score_histogram": (np.zeros(0, dtype=np.int64), np.zeros(0)),
}
"""Drawing takes most of a page's time; where a test is not about figures, there are none."""

VOID = {"meta", "link", "input", "br", "path", "use"}


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text outside of script and style."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def _hostile(make: MakeContents, text: str) -> ReportContents:
    """Sound contents in which every text that a user or a data set can reach is `text`."""
    attribution = Attribution(1, text, 0.5, 99.0, text, text, text)
    return make(
        **NO_FIGURES,
        title=text,
        influcoder_version=text,
        settings={text: {text: [text]}},
        evaluation={
            "methods": {text: {text: {"mean": 0.1, "std": 0.1}}, "encoder": {text: 0.3}},
            "queries": text,
            "split_audit": {"disjoint": False, "sizes": {text: 4}},
            "spread": text,
        },
        queries=(QueryPage(text, text, text, text, (attribution,)),),
        group=(attribution,),
        least=(attribution,),
        stages=(StageRow(text, 1.0, 1, 10, 5, 5, None, None),),
        truncation=(Truncation(text, 10, 9, 128),),
        quarantine_reasons={text: 5},
    )


def _assert_safe(source: str, scripts: int = 1) -> Page:
    page = Page(source)
    assert page.open == []
    assert len(page.tags("script")) == scripts
    for tag, attributes in page.elements:
        assert tag not in {"img", "iframe", "object", "embed", "base", "form", "video", "audio", "image"}
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{name} on <{tag}>"
            if name in {"src", "srcset", "href", "xlink:href", "action", "data", "poster"}:
                assert value is not None
                assert value.startswith("#") or value == "data:,"
    return page


HOSTILE = [
    "<script>alert(1)</script>",
    "</div></details></article><img src=http://evil.example/x onerror=alert(1)>",
    '" onmouseover="alert(1)" x=\'',
    "</script></style></title></pre><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}{# #}",
    "\x00\x1b[31m\u202egnp.exe\u2066\ufeff\ufffd]]>",
    "<!--<link rel=stylesheet href=//evil.example>",
    "",
    "\x00\x01",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_stays_text_wherever_it_stands(make_contents: MakeContents, text: str) -> None:
    """Prevents an example of the corpus from running as code, loading a page or breaking the layout."""
    source = render_html(_hostile(make_contents, text))
    page = _assert_safe(source)
    for character in "\x00\x1b\u202e\u2066\ufeff":
        assert character not in source
    if "{{" in text:
        assert "{{ 7 * 7 }}" in page.text


@given(st.text(st.characters(), max_size=80) | st.text("<>&\"'/!-= a{}%#\x00\u202e", max_size=80))
@settings(max_examples=12, deadline=None)
def test_any_text_gives_a_safe_page_that_can_be_written(make_contents: MakeContents, text: str) -> None:
    """Prevents a text that was not thought of from breaking or failing the report."""
    source = render_html(_hostile(make_contents, text))
    source.encode("utf-8")
    _assert_safe(source)


def test_the_page_refers_to_nothing_outside_itself(make_contents: MakeContents) -> None:
    """Prevents a report that changes, or tells on its reader, when it is opened."""
    source = render_html(make_contents())
    _assert_safe(source)
    assert not re.search(r"@import|@font-face|url\((?!#)", source)
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", source))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_only_the_page_s_own_script_may_run(make_contents: MakeContents) -> None:
    """Prevents a flaw in escaping from being enough to run code: the policy names the script's hash."""
    page = _assert_safe(render_html(_hostile(make_contents, HOSTILE[0])))
    policy = next(it["content"] for it in page.tags("meta") if "http-equiv" in it)
    assert policy
    digest = base64.b64encode(hashlib.sha256("".join(page.scripts).encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_every_query_and_attribution_is_on_the_page(make_contents: MakeContents) -> None:
    """Prevents results that are lost between the tables and the reader."""
    contents = make_contents()
    text = _assert_safe(render_html(contents)).text
    for query in contents.queries:
        assert query.query_id in text
        assert query.prompt in text
        assert query.response in text
    for it in contents.attributions():
        for shown in (it.prompt, it.response, it.source, it.example_id):
            assert shown in text


def test_rows_that_the_conditions_left_out_are_counted_apart_from_faults(
    make_contents: MakeContents,
) -> None:
    """Prevents a reader from taking a tenth of a crawl for all of it, or what was left out for broken."""
    assert "conditions" not in _assert_safe(render_html(make_contents())).text
    text = _assert_safe(render_html(make_contents(rows_left_out=1200, quarantine_reasons={}))).text
    assert "1,200 rows do not meet the conditions of the settings" in " ".join(text.split())
    assert "None: every row could be used." in " ".join(text.split())


def test_every_warning_is_on_the_page_and_none_gives_no_box(make_contents: MakeContents) -> None:
    """Prevents a warning that is found and not shown."""
    assert 'class="warnings"' not in render_html(make_contents())
    contents = make_contents(**NO_FIGURES, evaluation={}, truncation=(Truncation("teacher", 10, 9, 64),))
    sentences = warnings_for(contents)
    assert len(sentences) > 4
    source = render_html(contents)
    assert source.index('class="warnings"') < source.index('class="headline"')
    for sentence in sentences:
        assert sentence in html.unescape(source)


def test_headline_quality_and_run_show_the_figures_of_the_contents(make_contents: MakeContents) -> None:
    """Prevents a page whose numbers are another run's."""
    text = _assert_safe(render_html(make_contents())).text
    for words in (
        "0.74 ",
        "Before training it was 0.15",
        "998",
        "0.50%",
        "0.741",
        "± 0.010",
        "\N{MINUS SIGN}0.041",
        "0.520",
        "Rho 0.987",
        "13 min 32 s",
        "4 of 400 (1.0%)",
        "gradient is not finite",
        "standard deviation over bootstrap draws",
        "model: a-model",
        "Epoch 2 was chosen",
    ):
        assert words in text, words


def test_leads_and_seeds_are_on_the_page_where_they_were_measured(make_contents: MakeContents) -> None:
    """Prevents a lead, or the spread of several trainings, from being measured and not shown."""
    contents = make_contents(**NO_FIGURES)
    text = _assert_safe(render_html(contents)).text
    assert "+0.588 ± 0.015 100%" in text
    assert "training seeds" not in text
    assert "pool/test 3" in text
    contents.evaluation["seeds"] = [7, 8, 9]
    contents.evaluation["methods"]["encoder"]["per_query_rho"]["seeds"] = {"mean": 0.7134, "std": 0.0126}
    text = _assert_safe(render_html(contents)).text
    assert "Encoder, mean of 3 training seeds 0.713 ± 0.013" in text
    del contents.evaluation["leads"]
    assert "The encoder against the others" not in _assert_safe(render_html(contents)).text


def test_what_is_unfamiliar_is_counted_and_marked(make_contents: MakeContents) -> None:
    """Prevents a reader from taking a guess for a measured rank."""
    contents = make_contents()
    text = _assert_safe(render_html(contents)).text
    assert "4.1% of the corpus's rows (41), 4.2% of the queries (1) and 2.7% of all examples" in text
    assert "0.610 ± 0.020 at familiarity 1 to 48, 0.740 ± 0.010 at familiarity 49 to 99" in text
    assert "unfamiliar to the encoder" not in text
    query = contents.queries[0]
    row = replace(query.attributions[0], familiarity=1.25, unfamiliar=True)
    marked = replace(query, attributions=(row,), familiarity=QueryFamiliarity(2.5, True, 20, 7))
    text = _assert_safe(render_html(replace(contents, queries=(marked,)))).text
    assert "unfamiliar Prompt 0" in text
    assert "familiarity 1.25%, unfamiliar to the encoder" in text
    assert "Familiarity 2.5%, unfamiliar to the encoder" in text
    assert "of the 20 examples kept for it 7 are unfamiliar" in text


def test_what_shorter_vectors_cost_is_said_where_it_was_measured(make_contents: MakeContents) -> None:
    """Prevents a choice of embed.dimensions that nobody can weigh, and a line about nothing."""
    contents = make_contents()
    text = _assert_safe(render_html(contents)).text
    assert "128: rank agreement per query 0.713, recall@10 0.402; 64: rank agreement per query 0.711" in text
    del contents.evaluation["agreement_by_dimensions"]
    assert "foremost dimensions" not in _assert_safe(render_html(contents)).text


def test_methods_and_figures_that_are_added_later_are_shown(make_contents: MakeContents) -> None:
    """Prevents a new baseline from being measured and left out, or a time from being called best."""
    contents = make_contents()
    contents.evaluation["methods"]["gradient_cosine"] = {
        "per_query_rho": {"mean": 0.9},
        "ms_per_example": 132.0,
    }
    source = render_html(contents)
    text = _assert_safe(source).text
    assert "gradient cosine" in text
    assert "ms per example" in text
    best = re.findall(r'<td class="best">.*?</td>', source)
    assert len(best) == 3
    assert sum("0.900" in cell for cell in best) == 1
    assert not any("132" in cell for cell in best)


def test_forty_queries_of_ten_examples_stay_below_three_megabytes(make_contents: MakeContents) -> None:
    """Prevents a report that cannot be mailed, whatever the texts are made of."""
    for text in ("word " * 1_000_000, "&" * 10_000, '"<\U0001f600' * 3_000):
        rows = tuple(Attribution(n + 1, text, 0.5, 99.0, text, text, text) for n in range(10))
        query = QueryPage(text, "test", text, text, rows)
        contents = make_contents(queries=(query,) * 40, group=rows, least=rows)
        assert len(render_html(contents).encode("utf-8")) < 3_000_000


def test_highlights_of_forty_queries_stay_below_five_megabytes(make_contents: MakeContents) -> None:
    """Prevents marks, which weigh more than what they mark, from making a page that no telephone opens."""
    text = "some words " * 500
    spans = tuple(Span(at, at + 5, 1.0) for at in range(0, 5_000, 6))
    rows = tuple(
        Attribution(n + 1, text, 0.5, 99.0, text, text, text, prompt_spans=spans, response_spans=spans)
        for n in range(10)
    )
    contents = make_contents(
        queries=(QueryPage(text, "test", text, text, rows),) * 40, group=rows, least=rows
    )
    source = render_html(contents)
    assert source.count('<mark class="up4">') > 10_000
    assert len(source.encode("utf-8")) < 5_000_000


def test_shaded_parts_are_those_of_the_text_and_named_in_words(make_contents: MakeContents) -> None:
    """Prevents highlights that are computed and lost, or that stand where the cleaning has moved the text."""
    contents = make_contents(**NO_FIGURES)
    query = contents.queries[0]
    row = replace(
        query.attributions[0],
        prompt="Where?",
        response="\u202eIn Paris,\r\n\r\n\r\n\r\nnot Rome",
        response_spans=(Span(4, 9, 0.6), Span(22, 26, -0.2)),
    )
    source = render_html(replace(contents, queries=(replace(query, attributions=(row,)),)))
    _assert_safe(source)
    assert 'In <mark class="up4">Paris</mark>,\n\nnot <mark class="down2">Rome</mark>' in source
    text = _assert_safe(source).text
    assert "Shaded parts carry the example" in text
    assert "The strongest tokens, each with its share of all:" in text
    assert "Underlined words" not in text


def test_words_of_the_query_are_marked_where_nothing_better_is_known(make_contents: MakeContents) -> None:
    """Prevents an example from standing beside its query with nothing that leads the eye."""
    source = render_html(make_contents(**NO_FIGURES))
    _assert_safe(source)
    assert "Prompt 0 about sorting" in source
    contents = make_contents(**NO_FIGURES)
    query = contents.queries[0]
    row = replace(query.attributions[0], response="They SORT things")
    source = render_html(replace(contents, queries=(replace(query, attributions=(row,)),)))
    assert "They <mark>SORT</mark> things" in source
    assert "Underlined words" in _assert_safe(source).text


def test_sections_of_further_evidence_stand_behind_the_quality(make_contents: MakeContents) -> None:
    """Prevents evidence of other stages from being computed and not shown, or shown below the fold."""
    table = Table(
        "Held-out loss", "Trained on", ("Loss",), (Row("the selected tenth", (Cell("1.2", "0.1"),)),)
    )
    further = Section("validation", "Validation", "Validation by retraining", (table,))
    page = _assert_safe(render_html(make_contents(**NO_FIGURES), (further,)))
    sections = [it["id"] for it in page.tags("section")]
    assert sections.index("validation") == sections.index("quality") + 1
    assert "the selected tenth 1.2 ± 0.1" in page.text
    assert {"href": "#validation"} in page.tags("a")


def test_a_long_text_is_cut_and_the_page_says_so(make_contents: MakeContents) -> None:
    """Prevents a reader from taking a part of an example for the whole."""
    long = " ".join(f"word{n}" for n in range(2000))
    contents = make_contents(**NO_FIGURES, queries=(QueryPage("q", "test", long, "short", ()),))
    text = _assert_safe(render_html(contents)).text
    assert "word0 word1" in text
    assert "word500" in text
    assert "word1999" not in text
    assert "characters that are not in this page" in text


def test_a_run_with_nothing_in_it_still_gives_a_page(make_contents: MakeContents) -> None:
    """Prevents a partial run from ending without the report that would explain it."""
    contents = make_contents(
        title="",
        settings={},
        evaluation={},
        **NO_FIGURES,
        queries=(),
        group=(),
        least=(),
        stages=(),
        truncation=(),
        quarantine_reasons={},
        corpus_rows=0,
    )
    page = _assert_safe(render_html(contents), scripts=0)
    assert page.tags("svg") == []
    assert "nan" not in page.text.lower()
    assert "None " not in page.text.replace("None were", "").replace("None: every", "")


def test_undefined_numbers_are_dashes(make_contents: MakeContents) -> None:
    """Prevents "nan" in a table when one agreement or one score is undefined."""
    contents = make_contents()
    nan = float("nan")
    contents.evaluation["methods"]["encoder"]["per_query_rho"] = {"mean": nan, "std": nan}
    row = replace(contents.queries[0].attributions[0], score=nan, percentile=nan)
    query = replace(contents.queries[0], attributions=(row,))
    text = _assert_safe(render_html(replace(contents, queries=(query,)))).text
    assert not re.search(r"\bnan\b", text)


def test_ids_are_unique_and_links_lead_somewhere(make_contents: MakeContents) -> None:
    """Prevents links and labels that a screen reader follows into the void."""
    page = _assert_safe(render_html(make_contents()))
    ids = [found for _, attributes in page.elements if (found := attributes.get("id"))]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("href", "xlink:href", "aria-labelledby", "aria-describedby", "aria-controls", "for"):
            target = attributes.get(name) or ""
            if name.startswith("aria") or name == "for" or target.startswith("#"):
                assert not target or target.lstrip("#") in ids


def test_headings_descend_step_by_step_and_drawings_have_labels(make_contents: MakeContents) -> None:
    """Prevents a page that only those who see it can find their way in."""
    page = _assert_safe(render_html(make_contents(evaluation={})))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.tags("html")[0]["lang"] == "en"
    assert len(page.tags("svg")) == 3
    for svg, title, desc in zip(page.tags("svg"), page.tags("title")[1:], page.tags("desc"), strict=True):
        assert svg["role"] == "img"
        assert (svg["aria-labelledby"], svg["aria-describedby"]) == (title["id"], desc["id"])
    assert all(it.get("scope") in ("col", "row") for it in page.tags("th"))


def test_it_can_be_read_without_the_script(make_contents: MakeContents) -> None:
    """Prevents contents that only a script shows: what is hidden at first are the tools, which need it."""
    page = _assert_safe(render_html(make_contents()))
    hidden = [it["id"] for _, it in page.elements if "hidden" in it]
    assert hidden == ["table-tools", "table-more", "query-tools"]


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_keep_the_contrast_that_wcag_asks_for(make_contents: MakeContents, scheme: str) -> None:
    """Prevents type (4.5 to 1) and drawings (3 to 1) too faint to be read in either colour scheme."""
    css = render_html(make_contents(**NO_FIGURES))
    own = css.split(f":root:has(#scheme-{scheme}:checked) {{")[1].split("}")[0]
    by_system = css.split(":root {", 3)[2 if scheme == "dark" else 1].split("}")[0]
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", own))
    assert colours == dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", by_system))
    for ground in ("paper", "card", "inset"):
        for type_colour in ("ink", "muted", "accent"):
            assert _contrast(colours[type_colour], colours[ground]) >= 4.5, (type_colour, ground)
        for drawing in ("first", "second", "edge"):
            assert _contrast(colours[drawing], colours[ground]) >= 3, (drawing, ground)
    assert _contrast(colours["warn-ink"], colours["warn-paper"]) >= 4.5
    assert _contrast(colours["paper"], colours["accent"]) >= 4.5


def test_contents_that_do_not_fit_together_are_refused(make_contents: MakeContents) -> None:
    """Prevents a figure of pairs that were never paired."""
    with pytest.raises(ValueError, match="predicted is"):
        make_contents(predicted=np.zeros((2, 3)), exact=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="edges"):
        make_contents(score_histogram=(np.zeros(4), np.zeros(4)))
