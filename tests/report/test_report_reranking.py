"""What the page says of exact re-ranking: its gain and its price, and by what examples are ordered."""

import html
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from influcoder_ray.evaluation.reranking import reranking_curve
from influcoder_ray.report.contents import ReportContents, Reranked
from influcoder_ray.report.figures import Gain, reranking_gain
from influcoder_ray.report.render import render_html
from influcoder_ray.report.sections.figures import drawings
from influcoder_ray.report.sections.queries import order_note
from influcoder_ray.report.sections.reranking import reranking
from influcoder_ray.report.wording import percent

MakeContents = Callable[..., ReportContents]
RANDOM = np.random.default_rng(2)
EXACT = RANDOM.normal(size=(20, 50))


def _curves(*ks: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"recall_at": ks, "resamples": 20, "seed": 0}
    return {
        method: reranking_curve(EXACT + noise * RANDOM.normal(size=EXACT.shape), EXACT, **fields)
        for method, noise in (("encoder", 1.0), ("untrained_encoder", 5.0))
    }


CURVES = _curves(5, 10)


def _text(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_every_share_has_its_recall_overlap_and_cost_in_the_table(make_contents: MakeContents) -> None:
    """Prevents a gain without what it costs, and figures of another share or method."""
    contents = make_contents()
    contents.evaluation["reranking"] = CURVES
    table = reranking(contents.evaluation)
    assert table is not None
    assert (table.corner, *table.columns[:2]) == (
        "Share re-ranked",
        "Candidates a query",
        "Gradients (of the pool)",
    )
    assert table.columns[2:] == (
        *("Recall at 5", "Overlap at 5", "Own recall at 5"),
        *("Recall at 10", "Overlap at 10", "Own recall at 10"),
        *("Recall at 5, before training", "Recall at 10, before training"),
    )
    text = _text(render_html(contents))
    for row, point, before in zip(table.rows, CURVES["encoder"], CURVES["untrained_encoder"], strict=True):
        share, cells = row.name, row.cells
        assert share == percent(point["share"])
        assert cells[0].mean == str(point["candidates"])
        assert cells[1].mean.startswith(f"{point['gradient_evaluations']} (")
        names = [f"{kind}_at_{k}" for k in (5, 10) for kind in ("recall", "overlap", "own_recall")]
        figures = [point[name] for name in names] + [before["recall_at_5"], before["recall_at_10"]]
        assert [cell.mean for cell in cells[2:]] == [f"{it['mean']:.3f}" for it in figures]
        assert [cell.std for cell in cells[2:]] == [f"{it['std']:.3f}" for it in figures]
        assert " ".join((share, cells[0].mean, cells[1].mean, cells[2].mean)) in text


def test_the_drawing_tells_the_gain_and_its_price(make_contents: MakeContents) -> None:
    """Prevents a curve that only shows how good it gets."""
    contents = make_contents()
    contents.evaluation["reranking"] = CURVES
    drawing = drawings(contents)[-1]
    first, last = CURVES["encoder"][0], CURVES["encoder"][-1]
    assert f"From {first['recall_at_10']['mean']:.3f} at 0% to {last['recall_at_10']['mean']:.3f} at 20" in (
        drawing.meaning
    )
    assert f"takes the gradients of {percent(last['pool_share_evaluated'])} of the pool" in drawing.meaning
    assert drawing.svg is not None
    assert "gradients" in drawing.svg
    assert "before training" in drawing.svg
    assert "recall at 10" in drawing.svg
    assert len(drawings(make_contents())) == 3


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"encoder": "<b>"},
        {"encoder": [{"share": "<b>"}, 3]},
        {"encoder": [{"share": 0.1, "recall_at_10": "<b>", "candidates": None}]},
        {"encoder": [{"share": 0.1, "recall_at_<b>": {"mean": math.nan}}], "untrained_encoder": [{}]},
        {"encoder": [{"share": 0.1, "recall_at_10": {"mean": 0.5, "std": 0.1}}]},
    ],
)
def test_an_evaluation_that_holds_other_things_gives_a_page(
    make_contents: MakeContents, section: dict[str, Any]
) -> None:
    """Prevents a report that fails, or runs a text as code, on what another version has written."""
    contents = make_contents(epochs=(), predicted=np.zeros((0, 0)), exact=np.zeros((0, 0)))
    contents.evaluation["reranking"] = section
    page = render_html(contents)
    assert "<b>" not in re.sub(r"<b>(Prompt|Response|Text|[A-Z][a-z ]+)</b>", "", page)
    assert not re.search(r"\bnan\b", _text(page))


def test_the_figure_is_well_formed_whatever_is_missing() -> None:
    """Prevents an evaluation of one share, or of one method, from failing the whole report."""
    nan = math.nan
    for gains in ([Gain("one", [0.5], [0.0])], [Gain("one", [nan], [0.0]), Gain("two", [0.1], [0.1])]):
        svg = reranking_gain([0.1], gains, [nan], "recall", "label")
        assert svg
        ElementTree.fromstring(svg)
    assert reranking_gain([], [], [], "recall", "label") is None


def test_a_page_in_exact_order_says_so_and_shows_the_encoders_place(make_contents: MakeContents) -> None:
    """Prevents a reader from taking gradients' cosines for the encoder's, and the other way round."""
    contents = make_contents()
    assert order_note(contents) == ""
    assert "encoder: " not in render_html(contents)
    query = contents.queries[0]
    exact = replace(query.attributions[0], score=0.321, encoder_rank=17)
    behind = replace(query.attributions[1], score=math.nan, encoder_rank=2)
    others = replace(query.attributions[2], score=0.3, encoder_rank=None, percentile=None)
    reordered = replace(query, attributions=(exact, others, behind))
    changed = {"queries": (reordered,), "best_scores": (0.77,), "reranked": Reranked(30, 1200, 1000)}
    text = _text(render_html(replace(contents, **changed)))
    assert "30 best of each query were taken, and every query ranks them all by exact influence" in text
    assert "1,200 different examples, for which 1,000 gradients were computed" in text
    assert "0.321 encoder: 17" in text
    assert "0.300 encoder: missed" in text
    assert "\N{EN DASH} encoder: 2" in text
    assert "median of the queries' best scores is 0.770" in text
