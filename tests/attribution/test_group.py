"""The influence of examples on a whole query set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.attribution.cosine import cosines
from influcoder_ray.attribution.group import group_scores


@given(st.integers(1, 6), st.integers(0, 50), st.integers(1, 20), st.integers(1, 60), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_group_score_is_the_mean_of_the_cosines_and_keeps_its_bits_in_any_block(
    q: int, n: int, width: int, block_rows: int, seed: int
) -> None:
    """Prevents a mean dominated by long queries, and scores that change with the cut of the corpus."""
    generator = np.random.default_rng(seed)
    queries = (generator.normal(size=(q, width)) * generator.uniform(0.1, 9, size=(q, 1))).astype(np.float16)
    vectors = generator.normal(size=(n, width)).astype(np.float16)
    scores = group_scores(queries, vectors, block_rows=block_rows)
    wide = queries.astype(np.float32)
    expected = [
        cosines(wide, np.repeat(vector[None].astype(np.float32), q, axis=0)).mean() for vector in vectors
    ]
    np.testing.assert_allclose(scores, np.array(expected, np.float32), rtol=0, atol=5e-7)
    assert scores.tobytes() == group_scores(queries, vectors).tobytes()
    assert (np.abs(scores) <= 1).all()


def test_one_query_scored_against_itself_is_one_and_a_zero_vector_zero() -> None:
    """Prevents a score outside [-1, 1] and NaN from a vector without a direction."""
    query = np.random.default_rng(0).normal(size=(1, 384)).astype(np.float16)
    scores = group_scores(query, np.concatenate([query, -query, np.zeros_like(query)]))
    assert scores.tolist() == [1.0, -1.0, 0.0]


def test_no_queries_are_refused_and_no_vectors_are_not() -> None:
    """Prevents a mean over nothing."""
    with pytest.raises(ValueError, match="query vectors are empty"):
        group_scores(np.empty((0, 3), np.float32), np.ones((2, 3), np.float32))
    assert group_scores(np.ones((1, 3), np.float32), np.empty((0, 3), np.float32)).shape == (0,)
