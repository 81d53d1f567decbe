"""The head's vectors are of length one, and their cosine is the prediction."""

from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.encoder.features import Reading
from influcoder_ray.encoder.head import FOLDER, Head, has_head

READING = Reading(layers=(1,), hidden=4, separator=3, opening=1, closing=1)


def a_head(scale: float = 0.05) -> Head:
    torch.manual_seed(0)
    head = Head(READING, 6, 9)
    head.standardise_by(torch.randn(READING.width), torch.rand(READING.width))
    head.weight.copy_(torch.randn_like(head.weight) * scale)
    head.bias.copy_(torch.randn_like(head.bias) * scale)
    head.directions.copy_(torch.linalg.qr(torch.randn(9, 6)).Q)
    return head


@given(st.integers(0, 1000), st.sampled_from([0.001, 0.05, 5.0]))
@settings(max_examples=50, deadline=None)
def test_vectors_have_length_one_and_their_cosine_is_the_predicted_influence(seed: int, scale: float) -> None:
    """Prevents how surely a gradient is predicted from being lost when vectors are brought to length one."""
    head = a_head(scale)
    generator = torch.Generator().manual_seed(seed)
    queries, pool = (torch.randn(n, READING.width, generator=generator) for n in (3, 5))
    left, right = head(queries, "queries"), head(pool, "pool")
    for vectors in (left, right):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    shortened = [
        z / z.norm(dim=1, keepdim=True).clamp(min=1)
        for z in (head.coordinates(queries, "queries"), head.coordinates(pool, "pool"))
    ]
    torch.testing.assert_close(left @ right.T, shortened[0] @ shortened[1].T, rtol=1e-4, atol=1e-5)


def test_a_known_gradients_vector_has_its_share_of_the_predicted_directions_as_its_cosine() -> None:
    """Prevents a gradient's length, or what of it lies along no direction, from counting as agreement."""
    head = a_head()
    sketches = np.random.default_rng(3).normal(size=(4, 9)).astype(np.float32) * 7
    known = head.of_sketches(sketches, "queries")
    torch.testing.assert_close(known.norm(dim=1), torch.ones(4))
    unit = torch.from_numpy(sketches / np.linalg.norm(sketches, axis=1, keepdims=True))
    pool = head(torch.randn(5, READING.width), "pool")
    predicted = pool[:, :6] @ head.directions.T
    torch.testing.assert_close(known @ pool.T, unit @ predicted.T, rtol=1e-4, atol=1e-5)


def test_queries_and_pool_have_a_map_each() -> None:
    """Prevents one side's weights from being used for both."""
    head = a_head()
    features = torch.randn(4, READING.width)
    assert not torch.allclose(head(features, "queries")[:, :6], head(features, "pool")[:, :6])


def test_every_group_of_features_weighs_the_same() -> None:
    """Prevents wide hidden states from drowning what few numbers say of lengths."""
    head = Head(READING, 2, 9)
    features = torch.randn(20_000, READING.width) * torch.rand(READING.width) * 9 + torch.randn(READING.width)
    head.standardise_by(features.mean(0), features.var(0))
    lengths = [
        float(part.square().sum(1).mean()) for part in head.standardised(features).split(READING.groups, 1)
    ]
    assert all(abs(length - 1) < 0.05 for length in lengths)


def test_a_saved_head_is_the_same_head(tmp_path: Path) -> None:
    """Prevents weights, scales or the way of reading from being lost between training and embedding."""
    head = a_head()
    assert not has_head(tmp_path)
    head.save(tmp_path / FOLDER)
    assert has_head(tmp_path)
    again = Head.load(tmp_path / FOLDER)
    features = torch.randn(3, READING.width)
    assert torch.equal(again(features, "queries"), head(features, "queries"))
    assert torch.equal(again.directions, head.directions)
    assert again.reading == head.reading
    assert again.dimensions == head.dimensions == 8
