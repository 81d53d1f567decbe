"""The score of a pair, which must not know about any other pair."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.attribution.cosine import blocks, check_vectors, cosines, ordered_dot

F32 = npt.NDArray[np.float32]


def gaussian(rows: int, width: int, seed: int) -> F32:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_a_pairs_score_has_the_same_bits_alone_and_in_any_company(rows: int, width: int, seed: int) -> None:
    """Prevents a corpus cut in another way from scoring, and so ordering, its examples differently."""
    left, right = gaussian(rows, width, seed), gaussian(rows, width, seed + 1)
    together = cosines(left, right)
    alone = [cosines(left[i : i + 1].copy(), right[i : i + 1].copy())[0] for i in range(rows)]
    strided = cosines(np.asfortranarray(left), right[::-1][::-1])
    assert together.tobytes() == np.array(alone).tobytes() == strided.tobytes()


@given(st.integers(1, 70), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_scores_are_the_true_cosines(width: int, seed: int) -> None:
    """Prevents a folded sum that drops the middle term of an odd width."""
    left, right = gaussian(6, width, seed), gaussian(6, width, seed + 1)

    def total(a: F32, b: F32) -> float:
        return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))

    expected = [total(a, b) / math.sqrt(total(a, a) * total(b, b)) for a, b in zip(left, right, strict=True)]
    np.testing.assert_allclose(cosines(left, right), expected, rtol=0, atol=6.1e-8)
    dots = [total(a, b) for a, b in zip(left, right, strict=True)]
    np.testing.assert_allclose(ordered_dot(left, right), dots, rtol=0, atol=1e-13)


def test_a_vector_with_itself_scores_exactly_one_and_never_more() -> None:
    """Prevents cosines of 1.0003 from vectors whose length float16 has rounded."""
    rows = gaussian(500, 33, seed=0)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)
    assert (cosines(rows, rows) == 1).all()
    assert (cosines(rows, -rows) == -1).all()


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1.0, 1e30])
def test_length_does_not_matter_even_at_the_ends_of_float32(scale: float) -> None:
    """Prevents squares that overflow or vanish from turning a direction into NaN or zero."""
    rows, scaled = gaussian(20, 12, seed=1), gaussian(20, 12, seed=1) * np.float32(scale)
    other = gaussian(20, 12, seed=2)
    np.testing.assert_allclose(cosines(scaled, other), cosines(rows, other), rtol=0, atol=1e-5)


def test_a_zero_vector_scores_zero() -> None:
    """Prevents NaN from a vector without a direction."""
    zero = np.zeros((1, 4), np.float32)
    assert cosines(zero, gaussian(1, 4, seed=0)).tolist() == [0.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named_by_its_place_in_the_shard(bad: float) -> None:
    """Prevents NaN from sinking silently to the end of a ranking, or being named within its block."""
    rows = np.ones((10, 3), np.float16)
    rows[7, 1] = bad
    with pytest.raises(ValueError, match="vectors: row 7 holds"):
        list(blocks("vectors", rows, 4))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros(3, np.float32), r"shape \(3,\)"),
        (np.zeros((2, 0), np.float32), r"shape \(2, 0\)"),
        (np.zeros((2, 3), np.float64), "float64; float16 or float32"),
        (np.zeros((2, 5), np.float16), "width 5; the queries have 3"),
    ],
)
def test_vectors_of_another_shape_or_type_are_refused(vectors: F32, message: str) -> None:
    """Prevents float64 inputs, whose products are not exact, from breaking the promise quietly."""
    with pytest.raises(ValueError, match=message):
        check_vectors("vectors", vectors, 3)
