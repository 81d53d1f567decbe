"""What a width costs is measured as it is and predicted by the formula; advice keeps to its rule."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SENTENCES

from influcoder_ray.evaluation.fidelity import sketch_fidelity
from influcoder_ray.examples import Example
from influcoder_ray.gradients import widths
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec, SketchSpec
from influcoder_ray.gradients.teacher import Teacher
from influcoder_ray.gradients.widths import (
    DRAWS,
    WIDTHS,
    WidthError,
    advised_width,
    pair_cosines,
    predicted_error,
    products,
    sketches_of_widths,
    width_errors,
)

RANDOM = np.random.default_rng(5)
CPU = torch.device("cpu")


def rows_with_cosines(cosine: float, size: int) -> np.ndarray:
    """Rows (4, size) of which all pairs have about one cosine."""
    common, own = RANDOM.normal(size=(1, size)), RANDOM.normal(size=(4, size))
    return (np.sqrt(cosine) * common + np.sqrt(1 - cosine) * own).astype(np.float32)


@pytest.mark.parametrize("cosine", [0.0, 0.4, 0.8])
def test_the_error_of_sketched_cosines_is_the_predicted_one(cosine: float) -> None:
    """Prevents a prediction for dot products, or for one cosine alone, from passing as that for all."""
    rows = rows_with_cosines(cosine, 20_000)
    exact = pair_cosines(rows)
    errors = []
    for seed in range(120):
        sketches = torch.zeros(4, 1024)
        CountSketch(1024, seed).add(sketches, torch.from_numpy(rows)[:, None], "w")
        errors.append(np.abs(pair_cosines(sketches.numpy()) - exact).mean())
    standard_error = np.std(errors) / np.sqrt(len(errors))
    assert abs(np.mean(errors) - predicted_error(exact, 1024).mean()) < 4 * standard_error
    # Tight enough to tell (1 - c^2)^2 from the dot product's 1 + c^2 at the larger cosines.
    assert standard_error < 0.04 * np.mean(errors)


def test_side_by_side_each_sketch_is_the_one_that_a_run_makes(causal_lm_folder: Path) -> None:
    """Prevents advice from sketches that no run would ever store."""
    spec = ModelSpec(path=str(causal_lm_folder), max_tokens=64)
    teacher = Teacher.load(spec, AdapterSpec(rank=2), seed=0, device=CPU)
    tokens = teacher.tokens([Example(str(i), "", text, "") for i, text in enumerate(SENTENCES[:4])])
    found = sketches_of_widths(teacher, tokens, (2048, 1024), 7)
    assert [len(draws) for draws in found] == [DRAWS, DRAWS]
    for width, draws in zip((2048, 1024), found, strict=True):
        for draw, sketches in enumerate(draws):
            expected = teacher.sketch(tokens, CountSketch(width, 7 + draw)).sketches
            np.testing.assert_allclose(sketches, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_figures_of_a_width_are_those_of_the_evaluation() -> None:
    """Prevents doctor and report from giving two figures for one thing."""
    rows = RANDOM.normal(size=(7, 3000)).astype(np.float32)
    draws = [rows @ RANDOM.normal(size=(3000, 1024)).astype(np.float32) for _ in range(2)]
    (found,) = width_errors([draws], pair_cosines(rows))
    each = [sketch_fidelity(rows, sketches) for sketches in draws]
    assert found.width == 1024
    assert found.mean_error == pytest.approx(np.mean([e["mean_absolute_error"] for e in each]))
    assert found.worst_error == pytest.approx(max(e["max_absolute_error"] for e in each))
    assert found.rank_agreement == pytest.approx(np.mean([e["rho"] for e in each]))
    assert found.predicted_error == pytest.approx(predicted_error(pair_cosines(rows), 1024).mean())


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 40), st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_products_are_the_same_however_the_columns_are_cut(n: int, m: int, size: int, columns: int) -> None:
    """Prevents a lost or doubled column at the border of a block."""
    left, right = (RANDOM.normal(size=(rows, size)).astype(np.float32) for rows in (n, m))
    before, widths._COLUMNS = widths._COLUMNS, columns
    try:
        np.testing.assert_allclose(products(left, right), left.astype(float) @ right.T, rtol=1e-5, atol=1e-5)
    finally:
        widths._COLUMNS = before


def test_pairs_are_unordered_and_without_a_row_by_itself() -> None:
    """Prevents a row's cosine of 1 with itself from improving every figure."""
    rows = np.array([[1, 0], [1, 1], [-2, 0]], dtype=np.float32)
    np.testing.assert_allclose(pair_cosines(rows), [np.sqrt(0.5), -1, -np.sqrt(0.5)])


def test_ties_among_all_pairs_are_no_agreement_and_no_crash() -> None:
    """Prevents NaN from being printed, or from passing every comparison, where there is no order."""
    rows = np.eye(3, 1024, dtype=np.float32)
    (found,) = width_errors([[rows]], pair_cosines(rows))
    assert found.rank_agreement == 0
    assert found.mean_error == 0


STEPS = st.lists(st.tuples(st.floats(0.95, 1), st.floats(0, 0.02)), min_size=0, max_size=6)


@given(STEPS, st.floats(0, 0.2), st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_advised_width_is_the_smallest_that_is_enough_as_all_wider_ones_are(
    steps: list[tuple[float, float]], spread: float, shuffling: np.random.Generator
) -> None:
    """Prevents one lucky draw at a narrow width, or the order of the list, from deciding."""
    found = [WidthError(2**k, error, 1.0, 0.0, rho) for k, (rho, error) in enumerate(steps, start=10)]
    enough = [rho >= 0.99 and error <= 0.1 * spread for rho, error in steps]
    expected = next((w.width for k, w in enumerate(found) if all(enough[k:])), None)
    shuffling.shuffle(found)  # type: ignore[arg-type]
    assert advised_width(found, spread) == expected


def test_every_width_that_is_tried_can_be_set() -> None:
    """Prevents advice that the settings refuse."""
    for width in WIDTHS:
        assert SketchSpec(width=width).width == width
