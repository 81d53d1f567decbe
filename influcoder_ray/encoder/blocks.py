"""Which queries and pool examples meet in a step: a pure function of (seed, epoch)."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Block:
    """Rows of the training queries and of the training pool whose pairs make up one step."""

    queries: np.ndarray
    pool: np.ndarray


def epoch_blocks(
    queries: int, pool: int, *, queries_per_step: int, candidates_per_step: int, seed: int, epoch: int
) -> list[Block]:
    """The blocks of one epoch.

    Each side is walked in shuffled order, again and again, until both have been seen in full at
    least once; no row stands twice in a block.
    """
    q, p = min(queries_per_step, queries), min(candidates_per_step, pool)
    steps = max(-(-queries // q), -(-pool // p))
    generator = np.random.default_rng([seed, epoch])
    query_rows = _walk(queries, q, steps, generator)
    pool_rows = _walk(pool, p, steps, generator)
    return [Block(a, b) for a, b in zip(query_rows, pool_rows, strict=True)]


def _walk(rows: int, width: int, steps: int, generator: np.random.Generator) -> list[np.ndarray]:
    """`steps` draws of `width` distinct rows each, going round all rows in shuffled order."""
    draws: list[np.ndarray] = []
    rest = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        if len(rest) < width:
            fresh = generator.permutation(rows)
            # What is left of the last round comes first, and does not come again in this draw.
            rest = np.concatenate([rest, fresh[~np.isin(fresh, rest)], fresh[np.isin(fresh, rest)]])
        draws.append(rest[:width])
        rest = rest[width:]
    return draws
