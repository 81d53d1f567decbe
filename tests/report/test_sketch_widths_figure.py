"""The figure of sketch widths shows every width, in a page and as a file of its own."""

import re
import xml.etree.ElementTree as ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.report.figures import as_file, sketch_widths

WIDTHS = [2**k for k in range(11, 19)]
SHARES = st.floats(1e-6, 1)


def drawn(errors: list[float], agreement: list[float]) -> str:
    widths = WIDTHS[: len(errors)]
    svg = sketch_widths(widths, errors, [1.1 * e for e in errors], agreement, "what widths cost < here")
    assert svg
    return svg


@given(st.lists(st.tuples(SHARES, st.floats(-1, 1)), min_size=1, max_size=len(WIDTHS)))
@settings(max_examples=8, deadline=None)
def test_every_width_is_named_whatever_the_figures(points: list[tuple[float, float]]) -> None:
    """Prevents a scale that drops points, or a crash, on one width or on equal errors."""
    errors, agreement = (list(side) for side in zip(*points, strict=True))
    texts = [it.text for it in ElementTree.fromstring(drawn(errors, agreement)).iter() if it.text]
    assert {f"{width:,}" for width in WIDTHS[: len(points)]} <= set(texts)


def test_the_error_axis_has_round_labels() -> None:
    """Prevents an axis of powers of two, which nobody can read."""
    texts = re.findall(r">([\d.]+)</text>", drawn([0.017 / 2 ** (k / 2) for k in range(8)], [0.99] * 8))
    assert {"0.01", "0.005", "0.002"} <= set(texts)


def test_without_widths_there_is_no_figure() -> None:
    """Prevents an empty frame from standing for a measurement."""
    assert sketch_widths([], [], [], [], "none") is None


def test_as_a_file_it_has_a_size_and_type_for_light_and_dark_pages() -> None:
    """Prevents a drawing that a README shows as a stamp, or with dark type on a dark page."""
    page = drawn([0.01, 0.005], [0.9, 0.99])
    file = as_file(page)
    root = ElementTree.fromstring(file)
    assert (root.get("width"), root.get("height")) == ("662.4", "532.8")
    assert root.find("{http://www.w3.org/2000/svg}desc").text == "what widths cost < here"
    assert file.count("<style>") == 1
    assert "prefers-color-scheme: dark" in file
    body = page.split(">", 1)[1]
    assert file.rstrip().endswith(body)
