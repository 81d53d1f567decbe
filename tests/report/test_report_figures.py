"""The figures are valid, self-contained drawings that take their colours from the page."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from influcoder_ray.report.contents import EpochRow
from influcoder_ray.report.figures import predicted_against_exact, score_distribution, training_curve

RANDOM = np.random.default_rng(1)
EXACT = RANDOM.normal(size=(40, 60)) * 0.1
PREDICTED = EXACT + RANDOM.normal(size=EXACT.shape) * 0.1
EPOCHS = [EpochRow(0, None, 0.1, 0.2, False), EpochRow(1, 0.8, 0.5, 0.6, True)]
few = settings(max_examples=8, deadline=None)


def _three() -> list[str]:
    training = training_curve(EPOCHS, "training")
    pairs = predicted_against_exact(PREDICTED, EXACT, "pairs")
    scores = score_distribution(*np.histogram(PREDICTED, bins=64, range=(-1, 1)), [0.4, 0.5], "scores")
    assert training
    assert pairs
    assert scores
    return [training, pairs.svg, scores]


def test_each_figure_is_well_formed_with_a_label_and_ids_of_its_own() -> None:
    """Prevents a drawing that takes another one's clip path, as two matplotlib SVGs in a page do."""
    ids: list[str] = []
    for svg in _three():
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        texts = {it.get("id"): it.text for it in root}
        assert texts[root.get("aria-labelledby")]
        assert texts[root.get("aria-describedby")]
        own = [found for it in root.iter() if (found := it.get("id"))]
        references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
        assert {first or second for first, second in references} <= set(own)
        ids += own
    assert len(ids) == len(set(ids))


def test_no_figure_brings_a_colour_font_or_prologue_of_its_own() -> None:
    """Prevents black type on a dark page, and type in a font that the reader lacks."""
    for svg in _three():
        assert svg.startswith("<svg")
        without_fallbacks = re.sub(r"var\([^)]*\)", "", svg)
        assert not re.search(r"#[0-9a-f]{6}\b(?!\")", without_fallbacks)
        assert "DejaVu" not in svg
        assert "<style" not in svg
        assert "<metadata" not in svg
        assert "<image" not in svg
        assert "<text" in svg
        assert "currentColor" in svg


def test_figures_are_the_same_every_time() -> None:
    """Prevents reports of one run that differ."""
    assert _three() == _three()


@given(st.text(max_size=60))
@few
def test_a_label_is_escaped(label: str) -> None:
    """Prevents a text in a label from ending the drawing."""
    svg = training_curve(EPOCHS, f'"><script>{label.encode("utf-8", "ignore").decode()}')
    assert svg
    assert "<script" not in svg
    ElementTree.fromstring(svg)


def test_many_pairs_stay_a_small_drawing_and_are_all_counted() -> None:
    """Prevents half a million points from making a page that no telephone opens."""
    exact = RANDOM.standard_t(2, size=(800, 800))
    drawn = predicted_against_exact(exact + RANDOM.normal(size=exact.shape), exact, "pairs")
    assert drawn
    assert len(drawn.svg.encode()) < 300_000
    assert 0 < drawn.outside < 0.03 * exact.size
    assert drawn.has_trend


@pytest.mark.parametrize("shape", [(0, 0), (3, 0), (0,)])
def test_without_pairs_there_is_no_figure(shape: tuple[int, ...]) -> None:
    """Prevents an empty frame that looks like a result."""
    assert predicted_against_exact(np.zeros(shape), np.zeros(shape), "pairs") is None


@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(-1, 1) | st.just(float("nan"))), st.booleans())
@few
def test_any_finite_pair_can_be_drawn(values: np.ndarray, constant: bool) -> None:
    """Prevents a constant encoder or a few NaNs from failing the whole report."""
    drawn = predicted_against_exact(values, np.zeros((3, 4)) if constant else values, "pairs")
    assert (drawn is None) is bool(np.isnan(values).all())
    if drawn:
        ElementTree.fromstring(drawn.svg)
        assert "nan" not in drawn.svg


@pytest.mark.parametrize(
    "rows",
    [
        [EpochRow(0, None, 0.1, 0.2, True)],
        [EpochRow(0, None, float("nan"), float("nan"), False)],
        [EpochRow(0, None, 0.1, 0.2, False), EpochRow(1, float("nan"), 0.1, 0.2, True)],
        [EpochRow(epoch, 1.0 / (epoch + 1), 0.1, 0.2, epoch == 300) for epoch in range(400)],
    ],
)
def test_any_training_can_be_drawn(rows: list[EpochRow]) -> None:
    """Prevents a run of one epoch, or of an undefined agreement, from failing the whole report."""
    svg = training_curve(rows, "training")
    assert svg
    ElementTree.fromstring(svg)


def test_without_epochs_or_scores_there_is_no_figure() -> None:
    """Prevents an empty frame that looks like a result."""
    assert training_curve([], "training") is None
    assert score_distribution(np.zeros(0, dtype=np.int64), np.zeros(0), [], "scores") is None
    assert score_distribution(np.zeros(8, dtype=np.int64), np.linspace(-1, 1, 9), [], "scores") is None


@pytest.mark.parametrize("place", [0, 31, 63])
def test_scores_of_one_bin_can_be_drawn(place: int) -> None:
    """Prevents a corpus of one row from failing the whole report."""
    counts = np.zeros(64, dtype=np.int64)
    counts[place] = 2_000_000_000
    svg = score_distribution(counts, np.linspace(-1, 1, 65), [float("nan"), 0.2], "scores")
    assert svg
    ElementTree.fromstring(svg)
