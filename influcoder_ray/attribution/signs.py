"""Candidates by the signs of vectors alone: an eighth of a byte a number, to be scored again by the rest.

Shapes: N examples, Q queries, C candidates, d embedding width.

The signs of a vector, as -1 and 1, are a coarse vector of the same direction; their product with a whole
query orders examples far better than the number of signs in common would. Queries are rounded to multiples
of 2^-16, and their products with signs lie below 2^7: float32 adds them without rounding in any order, so
that candidates are the same on every machine.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from influcoder_ray.attribution.cosine import Vectors, check_vectors, norms
from influcoder_ray.attribution.topk import Best, Ids, Ranking

MOST_WIDTH = 1 << 14
"""The d up to which products are exact: the numbers of a unit vector add up to sqrt(d) at most."""

_STEPS = 1 << 16
_ROWS = 1024


class SignSearch:
    """Finds candidates of each query, shard after shard, by the signs of vectors.

    Args:
        query_vectors: (Q, d) float16 or float32.
        candidates: how many are kept for each query, at least 1.

    Raises:
        ValueError: candidates < 1; d above `MOST_WIDTH`; shapes or types that do not fit.
    """

    def __init__(self, query_vectors: Vectors, candidates: int) -> None:
        check_vectors("query vectors", query_vectors)
        if query_vectors.shape[1] > MOST_WIDTH:
            raise ValueError(f"query vectors have width {query_vectors.shape[1]}; {MOST_WIDTH} is the most")
        wide = query_vectors.astype(np.float64)
        lengths = norms(wide)[:, None]
        rounded = np.rint(wide / np.where(lengths > 0, lengths, 1.0) * _STEPS) / _STEPS
        self._directions = torch.from_numpy(rounded.astype(np.float32))
        self._best = Best(len(rounded), candidates, _names)
        self._rows = 0

    def add(self, blocks: Iterable[npt.NDArray[np.uint8]]) -> None:
        """Take in the next shard, some thousand rows (n, d / 8) at a time: `numpy.packbits(vectors < 0)`."""
        width = self._directions.shape[1]
        for block in blocks:
            for start in range(0, len(block), _ROWS):
                bits = np.unpackbits(block[start : start + _ROWS], axis=1, count=width)
                signs = torch.from_numpy(bits).to(torch.float32).mul_(-2).add_(1)
                products = (self._directions @ signs.T).numpy()
                query, row = np.divmod(np.flatnonzero(products >= self._best.bar[:, None]), len(bits))
                self._best.add(query, row + self._rows, products[query, row])
                self._rows += len(bits)

    def candidates(self) -> npt.NDArray[np.int64]:
        """(Q, C) rows of all shards, one after the other, the likeliest first; of equal ones the earlier."""
        ranking: Ranking = self._best.ranking("", self._rows)
        return ranking.rows


def _names(rows: npt.NDArray[np.int64]) -> Ids:
    """Names in the order of the rows."""
    return np.array([f"{row:020}" for row in rows.tolist()], dtype=object)
