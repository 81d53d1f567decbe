"""A real browser shows the report: on a desk and a telephone, in light and dark, with and without scripts."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_chromium

from influcoder_ray.report.blocks import Cell, Note, Row, Section, Table
from influcoder_ray.report.contents import Attribution, QueryPage, ReportContents, Truncation
from influcoder_ray.report.render import render_html
from influcoder_ray.report.spans import Span

CONTRAST = (Path(__file__).parent / "contrast.js").read_text("utf-8")
VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
LONG = "a_word_that_no_browser_can_break/" * 12
OPEN_ALL = "document.querySelectorAll('details').forEach(it => { it.open = true; })"
SHOWN_ROWS = "[...document.querySelectorAll('#attribution-table tbody tr')].filter(it => !it.hidden)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium has what this test needs")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def address(make_contents: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report with something of everything: warnings, marks of both kinds, long words, many rows."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(render_html(_contents(make_contents()), (_further(),)), "utf-8")
    return file.as_uri()


def _contents(sound: ReportContents) -> ReportContents:
    first, second = sound.queries
    best = first.attributions[0]
    spans = tuple(Span(n, n + 1, (n - 4) / 4) for n in range(len(best.response)))
    highlighted = replace(best, response_spans=spans, unfamiliar=True, familiarity=1.5)
    away = replace(best, rank=1000, score=-0.4, example_id=LONG, source=LONG, prompt=LONG, response=LONG)
    listed = tuple(
        QueryPage(
            f"more-{n}",
            "train",
            f"Further question {n}",
            "",
            (Attribution(1, f"more-{n}", n / 40, 99.5, f"more.parquet:{n}", f"About the number {n}", ""),),
        )
        for n in range(30)
    )
    return replace(
        sound,
        queries=(replace(first, attributions=(highlighted, *first.attributions[1:], away)), second),
        listed=listed,
        truncation=(Truncation("teacher", 10, 9, 64),),
    )


def _further() -> Section:
    table = Table(
        "Held-out loss", "Trained on", ("Loss",), (Row("the selected tenth", (Cell("1.2", "0.1"),)),)
    )
    return Section("validation", "Validation", "Validation by retraining", (table, Note("Over three seeds.")))


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_it_is_whole_quiet_and_readable(browser: Browser, address: str, width: int, scheme: str) -> None:
    """Prevents a page that fails, asks the network, runs over its edge or is too faint on some screen."""
    browser.open(address, width=width, height=844 if width < 600 else 900, scheme=scheme)
    browser.run(OPEN_ALL)
    assert browser.complaints() == []
    assert browser.requests() == [address]
    sizes = browser.run("[document.documentElement.scrollWidth, innerWidth]")
    assert sizes[0] <= width, sizes
    assert sizes[1] == width
    for selector, least in (
        ("h1", 1),
        (".warnings li", 1),
        (".headline .big", 3),
        ("section", 9),
        ("section#validation td", 1),
        ("svg[role=img] > title", 3),
        ("article.query", 2),
        ("mark[class^=up]", 1),
        ("mark[class^=down]", 1),
        ("mark:not([class])", 1),
    ):
        assert browser.run(f"document.querySelectorAll({selector!r}).length") >= least, selector
    dark = browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 26)"
    assert dark is (scheme == "dark")
    found = browser.run(CONTRAST)
    assert found["texts"] > 200
    assert found["faint"] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_switch_of_colours_works_without_a_script(browser: Browser, address: str, scheme: str) -> None:
    """Prevents a switch that only moves, that remembers, or that leaves type of the other scheme behind."""
    other = "dark" if scheme == "light" else "light"
    browser.open(address, width=1280, height=900, scheme=scheme, script=False)
    before = browser.run("getComputedStyle(document.body).backgroundColor")
    browser.run(f"document.getElementById('scheme-{other}').click()")
    assert browser.run("getComputedStyle(document.body).backgroundColor") != before
    assert browser.run("getComputedStyle(document.documentElement).colorScheme") == other
    assert browser.run(CONTRAST)["faint"] == []
    browser.open(address, width=1280, height=900, scheme=scheme)
    assert browser.run("getComputedStyle(document.body).backgroundColor") == before


def test_the_table_is_searched_and_sorted_from_the_keyboard(browser: Browser, address: str) -> None:
    """Prevents a table that needs a mouse, a search that misses rows, and numbers sorted as words."""
    browser.open(address, width=1280, height=900, scheme="light")
    assert browser.run(f"{SHOWN_ROWS}.length") == 25
    browser.run("document.getElementById('table-search').focus()")
    browser.press(*"number parquet:17")
    assert browser.run(_settled(f"{SHOWN_ROWS}.length === 1"))
    assert "About the number 17" in browser.run(f"{SHOWN_ROWS}[0].textContent")
    assert (
        browser.run("document.querySelector('#table-tools [role=status]').textContent")
        == "1 found, all shown"
    )
    browser.press("Escape")
    assert browser.run(_settled(f"{SHOWN_ROWS}.length === 25"))
    for _ in range(3):
        browser.press("Tab")
    assert browser.run("document.activeElement.textContent") == "Score"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    scores = f"{SHOWN_ROWS}.map(it => Number(it.cells[2].textContent.replace('\\u2212', '-')))"
    browser.press("Enter")
    assert browser.run("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"
    found = browser.run(scores)
    assert found == sorted(found, reverse=True)
    browser.press("Enter")
    found = browser.run(scores)
    assert found == sorted(found)
    assert found[0] == -0.4
    browser.run("document.querySelector('#table-more button:last-child').focus()")
    browser.press("Enter")
    assert browser.run(f"{SHOWN_ROWS}.length") == 36
    assert browser.complaints() == []


def test_a_row_leads_to_its_example_and_queries_can_be_filtered(browser: Browser, address: str) -> None:
    """Prevents links into closed rows, which would show nothing of what they lead to."""
    browser.open(address, width=1280, height=900, scheme="light")
    browser.run("document.getElementById('filter').focus()")
    browser.press(*"reading")
    shown = "[...document.querySelectorAll('article.query')].filter(it => !it.hidden).map(it => it.id).join()"
    assert browser.run(_settled(f"{shown} === 'query-2'"))
    browser.run("document.querySelector('#attribution-table a[href=\"#query-1-2\"]').focus()")
    browser.press("Enter")
    assert browser.run(_settled("document.getElementById('query-1-2').closest('details').open"))
    assert browser.run("document.getElementById('query-1-2').checkVisibility()")
    assert browser.run(_settled(f"{shown} === 'query-1,query-2'"))


def test_the_first_key_offers_to_skip_to_the_results(browser: Browser, address: str) -> None:
    """Prevents those who use the keyboard from having to walk through all that stands above."""
    browser.open(address, width=390, height=844, scheme="dark")
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    box = browser.run("(r => [r.width, r.height, r.left])(document.activeElement.getBoundingClientRect())")
    assert box[0] > 100
    assert box[1] > 20
    assert box[2] >= 0
    browser.press("Enter")
    assert browser.run("document.activeElement.id") == "main"


@pytest.mark.parametrize("width", [1280, 390])
def test_without_scripts_it_is_a_plain_page_with_everything(
    browser: Browser, address: str, width: int
) -> None:
    """Prevents rows that only a script can show, and controls that do nothing."""
    browser.open(address, width=width, height=844, scheme="light", script=False)
    assert browser.run(f"{SHOWN_ROWS}.length") == 36
    controls = "[...document.querySelectorAll('button, input')]"
    assert browser.run(f"{controls}.filter(it => it.checkVisibility()).map(it => it.name)") == ["scheme"] * 3
    browser.open(f"{address}#query-1-3", width=width, height=844, scheme="light", script=False)
    assert browser.run("document.getElementById('query-1-3').closest('details').open")


def _settled(condition: str) -> str:
    """A condition that is waited for: the search answers a moment after the last key."""
    return (
        f"new Promise(done => {{ const until = performance.now() + 15000; (function look() {{ "
        f"if ({condition}) done(true); else if (performance.now() > until) done(false); "
        f"else setTimeout(look, 20); }})(); }})"
    )
