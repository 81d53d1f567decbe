"""Near-duplicates and the order of maximal marginal relevance, against their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.attribution import diversity
from influcoder_ray.attribution.diversity import by_marginal_relevance, near_clusters, rounded_directions


def vectors(rows: int, width: int, seed: int) -> np.ndarray:
    """Some directions with copies of them that are a little off."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(max(1, rows // 3), width))
    picked = centres[generator.integers(len(centres), size=rows)]
    return (picked + generator.normal(scale=0.2, size=picked.shape)).astype(np.float16)


@given(st.integers(1, 40), st.integers(1, 8), st.floats(0.5, 1), st.integers(1, 7), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_row_joins_the_earliest_cluster_whose_first_member_is_near(
    rows: int, width: int, near: float, block: int, seed: int
) -> None:
    """Prevents clusters that hang on how rows are cut into blocks, or chains of rows far from each other."""
    directions = rounded_directions(vectors(rows, width, seed))
    firsts: list[int] = []
    expected = []
    for row in range(rows):
        joined = next((f for f in firsts if float(directions[row] @ directions[f]) >= near), row)
        if joined == row:
            firsts.append(row)
        expected.append(joined)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diversity, "_BLOCK", block)
        assert near_clusters(directions, near).tolist() == expected


@given(st.integers(1, 25), st.integers(1, 6), st.floats(0, 0.99), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_marginal_relevance_is_its_definition(rows: int, width: int, weight: float, seed: int) -> None:
    """Prevents a trade-off that is not the one stated."""
    directions = rounded_directions(vectors(rows, width, seed))
    scores = np.random.default_rng(seed).uniform(-1, 1, rows).astype(np.float32)
    order = list(by_marginal_relevance(scores, directions, weight))
    assert sorted(order) == list(range(rows))
    assert order[0] == int(np.argmax(scores))
    for turn, row in enumerate(order[1:], 1):
        worth = {
            other: (1 - weight) * float(scores[other])
            - weight * max(float(directions[other] @ directions[past]) for past in order[:turn])
            for other in range(rows)
            if other not in order[:turn]
        }
        assert worth[row] == max(worth.values())


def test_without_diversity_the_order_is_that_of_scores_and_with_it_a_copy_waits() -> None:
    """Prevents a setting without effect: the copy of the best row is second by score, last by relevance."""
    directions = rounded_directions(np.array([[1, 0], [1, 0], [0, 1]], np.float16))
    scores = np.array([0.9, 0.8, 0.5], np.float32)
    assert list(by_marginal_relevance(scores, directions, 0.0)) == [0, 1, 2]
    assert list(by_marginal_relevance(scores, directions, 0.5)) == [0, 2, 1]


def test_rounded_directions_multiply_exactly_in_any_order_and_stay_close() -> None:
    """Prevents a selection that hangs on how many threads a machine adds with."""
    some = np.random.default_rng(3).normal(size=(50, 384)).astype(np.float16)
    directions = rounded_directions(some)
    order = np.random.default_rng(4).permutation(384)
    assert (directions @ directions.T == directions[:, order] @ directions[:, order].T).all()
    wide = some.astype(np.float64) / np.linalg.norm(some.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(directions @ directions.T, wide @ wide.T, atol=2e-4)
    assert (rounded_directions(np.zeros((1, 4), np.float16)) == 0).all()
