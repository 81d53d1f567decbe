"""The hash behind adapters and sketches: the same numbers on every platform and version."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.gradients.hashing import hash_octets, hash_of, hash_positions, key_of, signs_of, uniform

CPU = torch.device("cpu")
WORDS = st.integers(0, 2**32 - 1)


def permuted(x: int) -> int:
    """The 32-bit permutation in Python's own unbounded integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def hashed(position: int, key: tuple[int, int]) -> int:
    """The keyed hash of a position in Python's own unbounded integers."""
    mixed = permuted(position % 2**32 ^ key[0])
    return permuted((mixed + key[1]) % 2**32 ^ position // 2**32)


@pytest.mark.parametrize(
    ("seed", "names", "key"),
    [
        (0, ("lora_A", "model.layers.0.self_attn.q_proj"), (1626790503, 831811213)),
        (7, ("countsketch", "lm.h.0.mlp.c_fc.lora_B"), (3007909497, 2825116143)),
        (-1, (), (2355866907, 4231098873)),
    ],
)
def test_the_key_of_a_seed_and_a_name_never_changes(
    seed: int, names: tuple[str, ...], key: tuple[int, int]
) -> None:
    """Prevents sketches of two versions that look alike and mean different things."""
    assert key_of(seed, *names) == key


@pytest.mark.parametrize(
    ("position", "key", "known"),
    [
        (0, (0, 0), 0),
        (1, (0, 0), 1492470133),
        (0, (1, 0), 1492470133),
        (12345, (0xDEADBEEF, 0x12345678), 2338631867),
        (2**32 - 1, (2**32 - 1, 2**32 - 1), 1734902346),
        (2**32 + 5, (3, 4), 3887211596),
        (7 * 2**40 + 11, (0x89ABCDEF, 0xFEDCBA98), 2603426832),
    ],
)
def test_the_hash_of_a_position_never_changes(position: int, key: tuple[int, int], known: int) -> None:
    """Prevents a platform's or a library's arithmetic from moving a parameter to another bucket."""
    assert hashed(position, key) == known
    assert hash_positions(position, 1, key, CPU).tolist() == [known]


@given(st.integers(0, 2**45), WORDS, WORDS)
@settings(max_examples=50, deadline=None)
def test_the_hash_equals_its_formula_in_unbounded_integers(first: int, low: int, high: int) -> None:
    """Prevents 64-bit overflow from leaking into the 32 bits that are kept."""
    expected = [hashed(first + i, (low, high)) for i in range(20)]
    assert hash_positions(first, 20, (low, high), CPU).tolist() == expected


def test_flipping_a_bit_of_position_or_key_flips_each_bit_of_the_hash_half_of_the_time() -> None:
    """Prevents neighbouring parameters, or modules with near keys, from sharing their buckets."""
    count = 20_000
    key = key_of(5, "avalanche")
    bits = 1 << torch.arange(32)
    base = hash_positions(0, count, key, CPU)
    # Flipping bit k of the low half of a position is flipping it in the first key.
    for changed in [(key[0] ^ 1 << k, key[1]) for k in range(32)] + [
        (key[0], key[1] ^ 1 << k) for k in range(32)
    ]:
        flipped = (base ^ hash_positions(0, count, changed, CPU)).unsqueeze(1) & bits != 0
        share = flipped.double().mean(0)
        # The mixing is good, not perfect: the search that found the multipliers left biases below 1%.
        assert (share - 0.5).abs().max() < 5 * 0.5 / count**0.5 + 0.01


def test_uniform_numbers_are_flat_inside_their_bound() -> None:
    """Prevents an adapter whose first weights are not those that its rank and inputs call for."""
    numbers = uniform(100_000, key_of(3, "flat"), 0.25, CPU)
    assert numbers.dtype == torch.float32
    assert numbers.abs().max() <= 0.25
    counts = torch.histc(numbers, bins=100, min=-0.25, max=0.25)
    # Chi-square with 99 degrees of freedom: 99.9% lies below 149.
    assert ((counts - 1000) ** 2 / 1000).sum() < 149


def test_uniform_numbers_never_change() -> None:
    """Prevents another adapter, and with it other gradients, under the same seed."""
    known = [-0.12250274419784546, 0.4784194231033325, 0.41929876804351807, 0.051499735563993454]
    assert uniform(4, key_of(3, "x"), 0.5, CPU).tolist() == known


@given(st.integers(0, 100), WORDS, WORDS)
@settings(max_examples=30, deadline=None)
def test_signs_are_the_bits_of_the_hashes_in_order(count: int, low: int, high: int) -> None:
    """Prevents a bit from being used twice, or a sign from changing with how many are asked for."""
    signs = signs_of(hash_octets(count, (low, high), CPU), count)
    assert signs.tolist() == [1 - 2 * (hashed(i // 32, (low, high)) >> i % 32 & 1) for i in range(count)]


@given(st.integers(0, 2**50), WORDS, WORDS)
def test_the_hash_of_one_position_is_that_of_a_tensor_of_them(position: int, low: int, high: int) -> None:
    """Prevents two hashes under one name."""
    assert hash_of(position, (low, high)) == int(hash_positions(position, 1, (low, high), CPU))
