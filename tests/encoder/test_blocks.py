"""Which pairs meet in a step: everyone comes, nobody twice, and chance is a function of the seed."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.encoder.blocks import Block, epoch_blocks

SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.integers(2, 20))


def made(sizes: tuple[int, int, int, int], seed: int = 0, epoch: int = 1) -> list[Block]:
    queries, pool, q, p = sizes
    return epoch_blocks(queries, pool, queries_per_step=q, candidates_per_step=p, seed=seed, epoch=epoch)


@given(SIZES, st.integers(0, 2**32), st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_every_row_is_seen_in_an_epoch_and_none_twice_in_a_block(
    sizes: tuple[int, int, int, int], seed: int, epoch: int
) -> None:
    """Prevents teacher pairs that were paid for and never used, and pairs of a row with itself."""
    queries, pool, q, p = sizes
    blocks = made(sizes, seed, epoch)
    assert len(blocks) == max(-(-queries // min(q, queries)), -(-pool // min(p, pool)))
    for side, total, width in (
        ([b.queries for b in blocks], queries, min(q, queries)),
        ([b.pool for b in blocks], pool, min(p, pool)),
    ):
        assert all(len(rows) == width == len(np.unique(rows)) for rows in side)
        counts = np.bincount(np.concatenate(side), minlength=total)
        assert len(counts) == total
        assert counts.min() >= 1
        # Going round and round: no row comes two rounds ahead of another.
        assert counts.max() - counts.min() <= 1


@given(SIZES, st.integers(0, 2**32), st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_blocks_are_a_pure_function_of_seed_and_epoch(
    sizes: tuple[int, int, int, int], seed: int, epoch: int
) -> None:
    """Prevents workers, or a restarted run, from disagreeing on what a step is."""
    np.random.seed(0)
    first = made(sizes, seed, epoch)
    np.random.seed(1)
    for a, b in zip(first, made(sizes, seed, epoch), strict=True):
        assert np.array_equal(a.queries, b.queries)
        assert np.array_equal(a.pool, b.pool)


def test_another_epoch_and_another_seed_are_other_blocks() -> None:
    """Prevents epochs that all show the same pairs."""
    orders = [
        np.concatenate([b.pool for b in made((40, 40, 8, 8), seed, epoch)]).tolist()
        for seed, epoch in ((0, 1), (0, 2), (1, 1), (1, 2))
    ]
    assert len({tuple(order) for order in orders}) == 4
