"""Familiarity is high at what was trained on, low far from it, and uniform on what it is calibrated on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SENTENCES

from influcoder_ray.encoder.familiarity import Familiarity, familiarity_bytes, read_familiarity
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.specs import EncoderSpec
from influcoder_ray.examples import Example

# Ten states, as of layers, and two lengths.
WIDTH, LENGTHS = 10, 2


def cloud(rows: int, seed: int, spread: float = 0.5, lengths: float = 5.0) -> np.ndarray:
    """Traits of like texts: unit vectors around one direction, and lengths around a mean."""
    generator = np.random.default_rng(seed)
    states = np.eye(WIDTH)[0] + spread * generator.normal(size=(rows, WIDTH))
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    return np.hstack([states, generator.normal(lengths, 1, (rows, LENGTHS))]).astype(np.float32)


def fit(training: np.ndarray, held_out: np.ndarray, neighbours: int = 5) -> Familiarity:
    return Familiarity.fit(training, held_out, lengths=LENGTHS, neighbours=neighbours)


def distance(measure: Familiarity, texts: np.ndarray) -> np.ndarray:
    return measure.distance(torch.from_numpy(texts)).numpy()


def percent(measure: Familiarity, texts: np.ndarray) -> np.ndarray:
    """The familiarity of texts by their traits."""
    return measure.percent(distance(measure, texts))


@pytest.fixture(scope="module")
def measure() -> Familiarity:
    return fit(cloud(300, 1), cloud(99, 2))


def test_distance_is_the_mean_to_the_nearest_references_lengths_standardised() -> None:
    """Prevents a distance to the centre, or to all, and lengths that outweigh what a text says."""
    training, texts = cloud(40, 3), cloud(7, 4)
    texts[0, WIDTH] = 1e6
    placed = []
    mean, spread = training[:, WIDTH:].mean(0), training[:, WIDTH:].std(0) + 1e-3
    for rows in (training, texts):
        lengths = ((rows[:, WIDTH:] - mean) / spread).clip(-10, 10)
        placed.append(np.hstack([rows[:, :WIDTH], 0.3 * lengths / LENGTHS**0.5]))
    apart = np.sort(np.linalg.norm(placed[1][:, None] - placed[0], axis=2), axis=1)
    found = distance(fit(training, cloud(9, 5), neighbours=3), texts)
    np.testing.assert_allclose(found, apart[:, :3].mean(1), atol=1e-3)
    few = distance(fit(training[:2], cloud(9, 5), neighbours=3), texts)
    assert few.shape == (7,)
    assert (few[1:] > found[1:]).all()


@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_held_out_texts_are_spread_evenly_from_0_to_100(held_out: int, neighbours: int, seed: int) -> None:
    """Prevents "below 5" from meaning anything else than farther out than 95 of 100 held-out texts."""
    texts = cloud(held_out, seed)
    measure = fit(cloud(50, 6), texts, neighbours=neighbours)
    even = 100 * np.arange(1, held_out + 1) / (held_out + 1)
    np.testing.assert_allclose(np.sort(percent(measure, texts)), even, atol=100 / held_out * 0.5 + 1e-3)
    assert np.abs(np.sort(percent(measure, texts)) - even).mean() < 0.1 * 100 / (held_out + 1)


def test_texts_like_the_held_out_ones_are_marked_as_often_as_the_limit_says() -> None:
    """Prevents a limit that marks more, or less, of a familiar corpus than it promises."""
    shares = []
    for seed in range(20):
        measure = fit(cloud(200, 3 * seed), cloud(150, 3 * seed + 1))
        fresh = percent(measure, cloud(1000, 3 * seed + 2))
        shares.append([(fresh < limit).mean() for limit in (5, 25, 50, 90)])
    np.testing.assert_allclose(np.mean(shares, axis=0), [0.05, 0.25, 0.5, 0.9], atol=0.02)


def test_a_training_text_is_at_the_top_and_a_far_text_at_the_bottom(measure: Familiarity) -> None:
    """Prevents a scale that is upside down."""
    training = percent(fit(cloud(300, 1), cloud(99, 2), neighbours=1), cloud(300, 1))
    assert (training > 99).all()
    unlike, long = cloud(50, 7, spread=0.2), cloud(50, 7, lengths=30.0)
    unlike[:, :WIDTH] *= -1
    for far in (percent(measure, unlike), percent(measure, long)):
        assert (far < 1).all()
        assert len(np.unique(far)) > 40, "texts beyond all held-out ones must still be told apart"


@given(st.lists(st.integers(0, 39), min_size=1, max_size=60), st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_a_text_has_one_familiarity_in_any_company_and_order(
    measure: Familiarity, rows: list[int], cut: int
) -> None:
    """Prevents a mark that depends on which shard a text was in, or on who stood beside it."""
    texts = np.concatenate([cloud(20, 8), cloud(20, 9, spread=4.0)])
    alone = np.concatenate([percent(measure, text[None]) for text in texts])
    parts = [percent(measure, texts[rows[start : start + cut]]) for start in range(0, len(rows), cut)]
    np.testing.assert_allclose(np.concatenate(parts), alone[rows], atol=1e-2)
    assert all(part.dtype == np.float32 for part in parts)


def test_rounding_of_a_text_is_not_magnified(measure: Familiarity) -> None:
    """Prevents held-out texts that lie all but equally far from making cliffs between them."""
    clones = np.repeat(cloud(1, 10), 90, axis=0) + 1e-7 * cloud(90, 11)
    steep = fit(cloud(300, 1), np.concatenate([clones, cloud(10, 12)]))
    texts = cloud(200, 13)
    shaken = texts * (1 + 1e-7 * np.random.default_rng(0).normal(size=texts.shape)).astype(np.float32)
    np.testing.assert_allclose(percent(steep, shaken), percent(steep, texts), atol=0.5)
    assert np.ptp(percent(steep, clones)) < 1, "equally near texts are equally familiar"


def test_a_measure_is_the_same_after_it_was_written_and_read(measure: Familiarity, tmp_path: Path) -> None:
    """Prevents workers from measuring otherwise than was calibrated."""
    other = fit(cloud(10, 14), cloud(5, 15), neighbours=2)
    (tmp_path / "file").write_bytes(familiarity_bytes({"pool": measure, "queries": other}))
    read = read_familiarity(tmp_path / "file")
    assert set(read) == {"pool", "queries"}
    texts = cloud(30, 16)
    for name, one in (("pool", measure), ("queries", other)):
        assert np.array_equal(percent(read[name], texts), percent(one, texts))
    assert familiarity_bytes(read) == familiarity_bytes({"pool": measure, "queries": other})


@pytest.mark.parametrize(("training", "held_out"), [(0, 3), (3, 0)])
def test_nothing_to_measure_against_is_refused(training: int, held_out: int) -> None:
    """Prevents a familiarity that was read off nothing."""
    with pytest.raises(ValueError, match="at least one of each"):
        fit(cloud(training, 1), cloud(held_out, 2))


def test_noise_is_less_familiar_than_any_held_out_sentence(encoder_folder: Path) -> None:
    """Prevents traits that do not tell text from noise."""
    spec = EncoderSpec(path=str(encoder_folder), max_tokens=64)
    encoder = Encoder.load(spec, torch.device("cpu"))
    generator = np.random.default_rng(0)

    def traits(texts: list[str]) -> np.ndarray:
        examples = [Example(str(i), "", text, "f:0") for i, text in enumerate(texts)]
        return encoder.embed_with_traits(examples, "pool", lambda found: found)[1]

    words = " ".join(SENTENCES).split()
    sentences = [" ".join(generator.choice(words, 20)) for _ in range(150)]
    noise = ["".join(map(chr, generator.integers(0x4E00, 0x9FFF, 20))) for _ in range(20)]
    lengths = encoder.reading.groups[-1]
    parts = traits(sentences[:100]), traits(sentences[100:])
    measure = Familiarity.fit(*parts, lengths=lengths, neighbours=5)
    assert (percent(measure, traits(noise)) < 100 / 51).all()
    assert percent(measure, traits(sentences[:100])).mean() > 60
