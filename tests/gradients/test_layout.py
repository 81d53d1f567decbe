"""How a batch lies in the model's input: every token, label and target at its place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.layout import HEAD_ROWS, Run, lay_out

CPU = torch.device("cpu")


@st.composite
def batches(draw: st.DrawFn) -> list[Tokens]:
    lengths = draw(st.lists(st.integers(2, 9), min_size=1, max_size=7))
    return [
        Tokens(
            tuple(draw(st.lists(st.integers(1, 99), min_size=n, max_size=n))),
            draw(st.integers(1, n - 1)),
            False,
        )
        for n in lengths
    ]


@given(batches(), st.booleans(), st.sampled_from([None, 1, 2, 3]))
@settings(max_examples=200, deadline=None)
def test_every_labelled_token_is_predicted_from_its_own_examples_tokens_before_it(
    tokens: list[Tokens], packed: bool, most_runs: int | None
) -> None:
    """Prevents a target of a neighbour, a label one position off, or the last label lost."""
    layout = lay_out(tokens, packed=packed, device=CPU, most_runs=most_runs)
    ids, labelled = layout.ids.flatten().tolist(), layout.labelled[: len(layout.targets)].tolist()
    assert len(layout.labelled) % HEAD_ROWS == 0
    assert len(layout.labelled) - len(labelled) < HEAD_ROWS
    assert layout.examples == len(tokens)
    assert layout.counts.tolist() == [t.labelled for t in tokens]
    assert layout.targets.tolist() == [i for t in tokens for i in t.ids[t.labelled_from :]]
    start = 0
    for t, place in zip(tokens, [run.length for run in layout.runs for _ in range(run.count)], strict=True):
        assert tuple(ids[start : start + len(t.ids)]) == t.ids
        where = [i - start for i in labelled if start <= i < start + place]
        assert where == list(range(t.labelled_from - 1, len(t.ids) - 1))
        if layout.positions is not None:
            assert layout.positions[0, start : start + place].tolist() == list(range(place))
        start += place
    assert start == layout.size


def test_packed_input_has_no_padding_and_padded_input_a_row_an_example() -> None:
    """Prevents work on positions that nobody asked for."""
    tokens = [Tokens((1, 2, 3), 1, False), Tokens((4, 5, 6), 1, False), Tokens((7, 8), 1, False)]
    packed, padded = (lay_out(tokens, packed=p, device=CPU) for p in (True, False))
    assert packed.ids.shape == (1, 8)
    assert packed.runs == (Run(2, 3), Run(1, 2))
    assert padded.ids.shape == (3, 3)
    assert padded.runs == (Run(3, 3),)
    assert padded.positions is None


@given(st.lists(st.integers(2, 90), min_size=1, max_size=60), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_few_lengths_are_had_for_little_padding(lengths: list[int], most_runs: int) -> None:
    """Prevents an operation for every length on a GPU, and examples filled up without need."""
    lengths = sorted(lengths, reverse=True)
    tokens = [Tokens(tuple(range(n)), 1, False) for n in lengths]
    layout = lay_out(tokens, packed=True, device=CPU, most_runs=most_runs)
    assert len(layout.runs) <= most_runs
    assert layout.size <= len(lengths) * lengths[0]
    if len(set(lengths)) <= most_runs:
        assert layout.size == sum(lengths)
    # A group is filled up by no more than lengths fall within it.
    size = -(-len(lengths) // most_runs)
    assert layout.size - sum(lengths) <= size * (lengths[0] - lengths[-1])


@pytest.mark.parametrize("packed", [True, False])
def test_an_example_alone_is_the_same_either_way(packed: bool) -> None:
    """Prevents a batch of one from being laid out in a way of its own."""
    layout = lay_out([Tokens((1, 2, 3, 4), 2, False)], packed=packed, device=CPU)
    assert layout.ids.tolist() == [[1, 2, 3, 4]]
    assert layout.labelled[:2].tolist() == [1, 2]
    assert layout.runs == (Run(1, 4),)
