"""The choice of examples that many queries would look at."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.encoder.promise import TOP_SHARE, most_promising


def unit(rows: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, 5)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@given(st.integers(1, 40), st.integers(1, 60), st.data())
@settings(max_examples=60, deadline=None)
def test_those_in_the_most_queries_top_tenth_are_chosen(
    queries: int, examples: int, data: st.DataObject
) -> None:
    """Prevents blocks of queries from being counted twice or not at all, and a bar of another query."""
    count = data.draw(st.integers(0, examples))
    left, right = unit(queries, 1), unit(examples, 2)
    top = max(1, round(TOP_SHARE * examples))
    wanted_by = [0] * examples
    for query in left:
        for row in sorted(range(examples), key=lambda row: -float(query @ right[row]))[:top]:
            wanted_by[row] += 1
    expected = sorted(sorted(range(examples), key=lambda row: (-wanted_by[row], row))[:count])
    assert most_promising(left, right, count).tolist() == expected


def test_a_query_of_large_influences_weighs_no_more_than_another() -> None:
    """Prevents one kind of query, whose influences are all large, from choosing for all."""
    loud, quiet = np.array([[1.0, 0.0]]), np.array([[0.0, 0.01]])
    queries = np.concatenate([loud, np.repeat(quiet, 2, 0)]).astype(np.float32)
    examples = np.zeros((20, 2), np.float16)
    examples[3, 0], examples[4, 0], examples[7, 1], examples[8, 1] = 1, 0.9, 0.5, 0.4
    assert most_promising(queries, examples, 2).tolist() == [7, 8]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_stored_vectors_choose_as_computed_ones_do(dtype: type) -> None:
    """Prevents float16, in which vectors are kept, from overflowing the product."""
    queries, examples = unit(30, 3), unit(200, 4)
    chosen = set(most_promising(queries, examples.astype(dtype), 40).tolist())
    assert len(chosen & set(most_promising(queries, examples, 40).tolist())) >= 38
