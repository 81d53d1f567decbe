"""Sketch fidelity over all pairs of examples."""

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import spearmanr

from influcoder_ray.evaluation import fidelity
from influcoder_ray.evaluation.fidelity import sketch_fidelity


def gaussian(*shape: int, seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_fidelity_is_that_of_a_plain_loop_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents pairs counted twice or with themselves, and columns lost between blocks."""
    monkeypatch.setattr(fidelity, "_COLUMNS", 64)
    gradients, sketches = gaussian(7, 1000, seed=0), gaussian(7, 50, seed=1)

    def cosines(rows: npt.NDArray[np.float32]) -> list[float]:
        wide = rows.astype(np.float64)
        return [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in combinations(wide, 2)]

    exact, sketched = cosines(gradients), cosines(sketches)
    error = np.abs(np.subtract(exact, sketched))
    result = sketch_fidelity(gradients, sketches)
    assert (result["examples"], result["pairs"], result["width"]) == (7, 21, 50)
    assert result["mean_absolute_error"] == pytest.approx(error.mean(), abs=1e-12)
    assert result["max_absolute_error"] == pytest.approx(error.max(), abs=1e-12)
    assert result["rho"] == pytest.approx(spearmanr(exact, sketched).statistic, abs=1e-12)


def test_gradients_are_a_perfect_sketch_of_themselves_at_any_scale() -> None:
    """Prevents an error that depends on the gradients' lengths."""
    gradients = gaussian(5, 300, seed=2)
    result = sketch_fidelity(gradients, gradients * np.float32(1024))
    assert result["rho"] == pytest.approx(1)
    assert result["max_absolute_error"] < 1e-12


def test_one_pair_has_errors_and_a_rho_of_zero() -> None:
    """Prevents NaN in the report for the smallest check."""
    result = sketch_fidelity(gaussian(2, 9, seed=3), gaussian(2, 4, seed=4))
    assert (result["pairs"], result["rho"]) == (1, 0.0)


@pytest.mark.parametrize(
    ("gradients", "sketches", "message"),
    [
        (gaussian(3, 4, seed=0), gaussian(2, 4, seed=0), r"\(3, 4\) and sketches \(2, 4\)"),
        (gaussian(1, 4, seed=0), gaussian(1, 4, seed=0), "1 examples make no pair"),
        (gaussian(2, 4, seed=0), np.array([[1, 0], [0, 0]], np.float32), "sketches: row 1 is zero"),
        (
            np.array([[1, 0], [np.inf, 0]], np.float32),
            gaussian(2, 4, seed=0),
            "gradients: row 1 .* not finite",
        ),
    ],
)
def test_examples_without_a_cosine_are_refused(
    gradients: npt.NDArray[np.float32], sketches: npt.NDArray[np.float32], message: str
) -> None:
    """Prevents NaN from passing as a fidelity."""
    with pytest.raises(ValueError, match=message):
        sketch_fidelity(gradients, sketches)
