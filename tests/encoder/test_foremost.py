"""The foremost directions of a head are a head of their own, without training anew."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.encoder.features import Reading
from influcoder_ray.encoder.head import FOLDER, SIDES, Head, count_directions
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.recipes import training
from influcoder_ray.encoder.specs import DistillSpec, EncoderSpec
from influcoder_ray.encoder.training import Examples
from influcoder_ray.encoder.workers import Workers
from influcoder_ray.examples import Example
from influcoder_ray.tables.place import Place

READING = Reading(layers=(1,), hidden=4, separator=3, opening=1, closing=1)
DIRECTIONS, SKETCH = 6, 9
WORDS = ["bread", "flour", "oven", "yeast", "river", "lake", "water", "rain"]
WORDS += ["vector", "matrix", "slope", "loss", "paris", "tokyo", "capital", "france"]


def a_head(seed: int, scale: float) -> Head:
    generator = torch.Generator().manual_seed(seed)
    head = Head(READING, DIRECTIONS, SKETCH)
    head.standardise_by(torch.randn(READING.width, generator=generator), torch.ones(READING.width))
    head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * scale)
    head.bias.copy_(torch.randn(head.bias.shape, generator=generator) * scale)
    head.directions.copy_(torch.linalg.qr(torch.randn(SKETCH, DIRECTIONS, generator=generator)).Q)
    return head


@given(st.integers(0, 1000), st.integers(1, DIRECTIONS), st.sampled_from([0.001, 0.05, 5.0]))
@settings(max_examples=60, deadline=None)
def test_shorter_vectors_are_the_foremost_coordinates_filled_up_to_length_one(
    seed: int, kept: int, scale: float
) -> None:
    """Prevents a cosine of other directions than the foremost, or one that the lost numbers still shrink."""
    head = a_head(seed, scale)
    fewer = head.foremost(kept)
    assert fewer.dimensions == kept + 2
    generator = torch.Generator().manual_seed(seed + 1)
    features = torch.randn(5, READING.width, generator=generator)
    sketches = torch.randn(5, SKETCH, generator=generator).numpy()
    made = {
        side: (fewer(features, side), fewer.of_sketches(sketches, side), head.of_sketches(sketches, side))
        for side in SIDES
    }
    for side, (predicted, known, whole) in made.items():
        for vectors in (predicted, known):
            assert vectors.shape == (5, kept + 2)
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
            assert not vectors[:, kept if side == "pool" else kept + 1].any()
        coordinates = head.coordinates(features, side)[:, :kept]
        shortened = coordinates / coordinates.norm(dim=1, keepdim=True).clamp(min=1)
        torch.testing.assert_close(predicted[:, :kept], shortened, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(known[:, :kept], whole[:, :kept])
    products = made["queries"][1][:, :kept] @ made["pool"][0][:, :kept].T
    torch.testing.assert_close(made["queries"][1] @ made["pool"][0].T, products)


def test_all_directions_are_the_head_itself_and_more_or_none_are_refused() -> None:
    """Prevents a head of directions that nobody has fitted, and a last one that is lost."""
    head = a_head(0, 0.05)
    features = torch.randn(3, READING.width)
    assert torch.equal(head.foremost(DIRECTIONS)(features, "pool"), head(features, "pool"))
    for count in (0, DIRECTIONS + 1, -1):
        with pytest.raises(ValueError, match=f"dimensions is {count}; the head has {DIRECTIONS}"):
            head.foremost(count)


def test_an_encoders_directions_are_counted_without_reading_its_weights(tmp_path: Path) -> None:
    """Prevents a refusal that takes the width of a vector, or of a sketch, for the directions."""
    assert count_directions(Place(str(tmp_path))) == 0
    a_head(0, 0.05).save(tmp_path / FOLDER)
    assert count_directions(Place(str(tmp_path))) == DIRECTIONS


def _fitted(folder: Path, dimensions: int) -> Encoder:
    """An encoder after the epoch that fits the head, to texts and sketches that depend on the words."""
    encoder = Encoder.load(EncoderSpec(path=str(folder), max_tokens=48), torch.device("cpu"))
    generator = np.random.default_rng(0)
    own = generator.normal(size=(len(WORDS), 12)) / np.arange(1, 13)

    def side(rows: int) -> Examples:
        drawn = generator.integers(0, len(WORDS), (rows, 5))
        texts = [" ".join(WORDS[word] for word in row) for row in drawn]
        examples = [Example(f"{i}", "", text, "f:0") for i, text in enumerate(texts)]
        return Examples(encoder.windows(examples)[0], own[drawn].sum(1).astype(np.float32), rows)

    spec = DistillSpec(epochs=1, dimensions=dimensions, folds=2)
    training(encoder, side(20), side(30), spec, seed=3, workers=Workers()).train_epoch()
    return encoder


def test_a_cut_head_is_the_head_that_is_fitted_with_fewer_dimensions(
    encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a student that would have to be trained for each number of dimensions.

    The penalty alone is chosen by all dimensions together, and is the same here.
    """
    monkeypatch.setattr("influcoder_ray.encoder.spectral.best_penalty", lambda folds: 3.0)
    whole, few = _fitted(encoder_folder, 8), _fitted(encoder_folder, 3)
    assert whole.head is not None
    assert few.head is not None
    cut = whole.foremost(3)
    assert cut.head is not None
    # A direction has no sign of its own.
    signs = torch.sign((cut.head.directions * few.head.directions).sum(0))
    torch.testing.assert_close(cut.head.directions * signs, few.head.directions, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(cut.head.weight * signs, few.head.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(cut.head.bias * signs, few.head.bias, rtol=1e-3, atol=1e-4)
    asked, held = ([Example("", "", text, "f:0")] for text in ("bread oven water", "river flour loss"))
    scores = [one.embed(asked, "queries")[0] @ one.embed(held, "pool")[0].T for one in (cut, few)]
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_an_encoder_without_a_head_has_no_foremost_numbers_and_the_others_keep_their_traits(
    encoder_folder: Path,
) -> None:
    """Prevents pooled numbers from being cut off, and a familiarity of other traits."""
    whole = _fitted(encoder_folder, 8)
    texts = [Example("", "flour", "bread and water", "f:0")]
    vectors, traits, _, _ = whole.embed_with_traits(texts, "pool", lambda it: it)
    shorter, same, _, _ = whole.foremost(3).embed_with_traits(texts, "pool", lambda it: it)
    assert np.array_equal(traits, same)
    along = [one[0, :3] / np.linalg.norm(one[0, :3]) for one in (vectors, shorter)]
    np.testing.assert_allclose(*along, atol=1e-6)
    assert shorter.shape == (1, 5)
    whole.head = None
    with pytest.raises(ValueError, match="has no head"):
        whole.foremost(3)
