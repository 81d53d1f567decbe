"""What the head reads: the same numbers for a text alone and in any batch, padded on either side."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from influcoder_ray.encoder.features import Reading, features, traits

BEGIN, SEPARATOR = 1, 2
READING = Reading(layers=(1, 2), hidden=3, separator=SEPARATOR, opening=1, closing=1)
# Content of a text between its special tokens: a prompt (None: raw text) and a response.
_TOKENS = st.lists(st.integers(3, 30), max_size=9)
TEXTS = st.lists(st.tuples(st.none() | _TOKENS, _TOKENS), min_size=1, max_size=5)
Text = tuple[list[int] | None, list[int]]


def ids_of(text: Text) -> list[int]:
    prompt, response = text
    return [BEGIN, *([] if prompt is None else [*prompt, SEPARATOR]), *response, SEPARATOR]


def states_of(ids: Tensor) -> tuple[Tensor, ...]:
    """Three layers of states, each a function of the token alone."""
    return tuple(
        torch.sin(ids[..., None] * (1 + layer) * torch.tensor([1.0, 2.0, 3.0])) for layer in range(3)
    )


def read(texts: Sequence[Text], *, left: bool = False, reading: Reading = READING) -> Tensor:
    rows = [ids_of(text) for text in texts]
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, row in enumerate(rows):
        where = slice(longest - len(row), None) if left else slice(len(row))
        ids[number, where], mask[number, where] = torch.tensor(row), 1
    return features(states_of(ids), ids, mask, reading)


def expected(text: Text) -> Tensor:
    """The features of one text, straight from their definition."""
    ids = torch.tensor(ids_of(text))
    prompt, response = text
    first = len(ids) - 1 - len(response)
    parts = []
    for layer in READING.layers:
        states = states_of(ids)[layer]
        parts += [states.mean(0), states[first:-1].mean(0) if response else torch.zeros(3)]
    octave = torch.log2(torch.tensor(float(max(1, len(response)))))
    smooth = torch.stack(
        [octave, octave**2, 1 / 2**octave, torch.log2(torch.tensor(1.0 + len(prompt or []))), octave * 0]
    )
    smooth[4] = float(prompt is not None)
    near = torch.tensor([max(0.0, 1 - abs(float(octave) - k)) for k in range(10)])
    return torch.cat([*parts, smooth, near])


@given(TEXTS, st.booleans())
@settings(max_examples=100, deadline=None)
def test_features_are_those_of_the_text_alone(texts: list[Text], left: bool) -> None:
    """Prevents padding, neighbours or the prompt's tokens from leaking into what the response says."""
    found = read(texts, left=left)
    assert found.shape == (len(texts), READING.width)
    torch.testing.assert_close(found, torch.stack([expected(text) for text in texts]), rtol=1e-5, atol=1e-6)


def test_without_a_separator_everything_is_response() -> None:
    """Prevents an encoder whose tokenizer has no separator from having no features of the response."""
    reading = Reading(layers=(1, 2), hidden=3, separator=None, opening=1, closing=1)
    as_prompt, as_raw = read([([5, 6], [7])], reading=reading), read([(None, [5, 6, SEPARATOR, 7])])
    # The same tokens; the separator inside a raw text would part it.
    whole = states_of(torch.tensor([5, 6, SEPARATOR, 7]))[1].mean(0)
    torch.testing.assert_close(as_prompt[0, 3:6], whole)
    assert not torch.allclose(as_raw[0, 3:6], whole)


def test_groups_are_as_wide_as_the_features() -> None:
    """Prevents a scale of one group from being taken for its neighbour's."""
    assert sum(READING.groups) == READING.width == read([(None, [4])]).shape[1]
    assert Reading.from_dict(READING.to_dict()) == READING


@pytest.mark.parametrize("response", [[], [5], [5] * 1000])
def test_features_are_finite_however_short_or_long_the_response(response: list[int]) -> None:
    """Prevents a mean over nothing, or the logarithm of no tokens, from becoming NaN."""
    assert torch.isfinite(read([([3], response)])).all()


def test_traits_are_each_layers_direction_over_the_whole_text_and_the_lengths() -> None:
    """Prevents familiarity from being measured on the response alone, or by how long a state vector is."""
    found = read([([4, 5], [6, 7, 8]), (None, [9])])
    split = found.split(READING.groups, dim=1)
    expected = torch.cat([torch.nn.functional.normalize(part) for part in (split[0], split[2])], 1)
    torch.testing.assert_close(traits(found, READING), torch.cat([expected, split[4]], 1))
