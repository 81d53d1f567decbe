"""Influence on groups of queries, against cosines taken one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.attribution.aims import aim_vectors, contrast, influence, nearest_aims
from influcoder_ray.attribution.cosine import cosines
from influcoder_ray.attribution.group import group_scores


def some(rows: int, width: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    scale = generator.uniform(0.1, 9, size=(rows, 1))
    return (generator.normal(size=(rows, width)) * scale).astype(np.float16)


@given(st.integers(1, 6), st.integers(0, 40), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_highest_cosine_is_found_bit_for_bit_and_of_equal_ones_the_first(
    aims: int, rows: int, width: int, seed: int
) -> None:
    """Prevents scores that hang on the shard in which a row lies, or another query's name beside a row."""
    wide, vectors = some(aims, width, seed).astype(np.float32), some(rows, width, seed + 1)
    wide = np.concatenate([wide, wide])
    scores, nearest = nearest_aims(wide, vectors)
    for row in range(rows):
        each = cosines(wide, np.repeat(vectors[row : row + 1].astype(np.float32), len(wide), axis=0))
        assert scores[row] == each.max()
        assert nearest[row] == np.argmax(each) < aims
        alone, _ = nearest_aims(wide, vectors[row : row + 1])
        assert alone[0] == scores[row]


def test_a_group_is_one_aim_whatever_the_length_of_its_members() -> None:
    """Prevents one long vector from speaking for its whole group."""
    queries = np.array([[10, 0], [0, 1], [-3, 0]], np.float32)
    aims = aim_vectors(queries, [[0, 1], [2]])
    np.testing.assert_allclose(aims, [[0.5, 0.5], [-3, 0]])
    with pytest.raises(ValueError, match="group 1 has no queries"):
        aim_vectors(queries, [[0], []])


def test_mean_influence_is_group_influence_and_maximum_the_highest_cosine() -> None:
    """Prevents a selection by another score than the one that `group_influence` shows."""
    queries, vectors = some(5, 8, 1), some(30, 8, 2)
    aims = aim_vectors(queries, [[i] for i in range(5)])
    mean, nearest = influence(queries, aims, vectors, "mean")
    highest, same = influence(queries, aims, vectors, "max")
    assert mean.tobytes() == group_scores(queries, vectors).tobytes()
    assert (nearest == same).all()
    assert (highest >= mean).all()


def test_protected_influence_is_taken_off_with_its_weight() -> None:
    """Prevents a sign or a weight that is not the stated u - w p."""
    found = contrast(np.array([0.5, 0.25], np.float32), np.array([0.5, -0.5], np.float32), 0.5)
    assert found.tolist() == [0.25, 0.5]
