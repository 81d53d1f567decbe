"""Batches by token budget."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.examples.batching import token_batches


def size_of(lengths: list[int], packed: bool) -> int:
    """What a batch of rows takes of the budget."""
    return sum(lengths) if packed else len(lengths) * max(lengths)


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 120), st.booleans())
@settings(max_examples=100, deadline=None)
def test_batches_hold_each_row_once_within_the_budget_longest_first(
    lengths: list[int], budget: int, packed: bool
) -> None:
    """Prevents a lost or doubled row, and a batch that does not fit into memory."""
    batches = token_batches(lengths, budget, packed=packed)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or size_of([lengths[row] for row in batch], packed) <= budget
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120), st.booleans())
@settings(max_examples=100, deadline=None)
def test_no_batch_could_have_taken_the_row_that_follows_it(
    lengths: list[int], budget: int, packed: bool
) -> None:
    """Prevents batches of one row each, which would keep within any budget."""
    batches = token_batches(lengths, budget, packed=packed)
    for batch, following in itertools.pairwise(batches):
        assert following
        assert size_of([lengths[row] for row in [*batch, following[0]]], packed) > budget
    assert batches == token_batches(list(lengths), budget, packed=packed)
