"""Candidates by signs alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.attribution.signs import MOST_WIDTH, SignSearch


@given(st.integers(0, 1000), st.integers(1, 300), st.integers(1, 70), st.integers(1, 40), st.integers(1, 99))
@settings(max_examples=30, deadline=None)
def test_candidates_are_those_of_one_full_sort_of_exact_products(
    seed: int, rows: int, width: int, wanted: int, block: int
) -> None:
    """Prevents candidates that hang on the shards, the block or the rounding of a matrix product."""
    generator = np.random.default_rng(seed)
    queries = generator.normal(size=(3, width)).astype(np.float16)
    bits = generator.integers(0, 2, size=(rows, width)).astype(bool)
    bits[rows // 2 :] = bits[rows // 2]
    search = SignSearch(queries, wanted)
    packed = np.packbits(bits, axis=1)
    half = rows // 3
    for shard in (packed[:half], packed[half:]):
        search.add(shard[start : start + block] for start in range(0, len(shard), block))
    wide = queries.astype(np.float64)
    directions = np.rint(wide / np.linalg.norm(wide, axis=1, keepdims=True) * 2**16)
    products = directions @ np.where(bits, -1.0, 1.0).T
    order = np.lexsort((np.broadcast_to(np.arange(rows), products.shape), -products), axis=1)
    assert search.candidates().tolist() == order[:, : min(wanted, rows)].tolist()


def test_among_many_candidates_are_nearly_all_of_the_best() -> None:
    """Prevents signs packed or unpacked in another order than the numbers', which would find nothing."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(40, 384))
    vectors = centres[generator.integers(40, size=8000)] + 0.8 * generator.normal(size=(8000, 384))
    queries = (centres[:5] + 0.8 * generator.normal(size=(5, 384))).astype(np.float16)
    search = SignSearch(queries, 400)
    search.add([np.packbits(vectors < 0, axis=1)])
    lengths = np.linalg.norm(vectors, axis=1)
    best = np.argsort(-(queries.astype(np.float64) @ vectors.T) / lengths, axis=1)[:, :100]
    found = [len(set(a) & set(b)) / 100 for a, b in zip(best, search.candidates(), strict=True)]
    assert np.mean(found) >= 0.95


def test_widths_at_which_products_would_be_rounded_are_refused() -> None:
    """Prevents candidates that differ between machines."""
    with pytest.raises(ValueError, match=f"width {MOST_WIDTH + 1}"):
        SignSearch(np.ones((1, MOST_WIDTH + 1), np.float16), 1)
