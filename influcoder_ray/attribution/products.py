"""What one matrix product of queries and vectors tells: who may be among the best, and how scores spread.

Shapes: N vectors, Q queries, M pairs, K top k, d embedding width.

The product is float32 and fast, and its bits change with the machine. So it only says which pairs come
into question, and counts scores in bins a thousand times as wide as its error; the scores that are kept
are those of `cosine` and `group`, whose bits do not change. So a GPU may form it as well as a CPU.
"""

import threading
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from influcoder_ray.attribution.cosine import BLOCK_ROWS, Vectors, blocks, cosines, nearest_float32, norms
from influcoder_ray.attribution.distribution import BINS, ScoreHistogram
from influcoder_ray.attribution.group import settled
from influcoder_ray.attribution.reaching import kth_highest, reaching
from influcoder_ray.attribution.topk import kth_best

_ROWS, _PRODUCTS = 1024, 1 << 20
"""Vectors, and products of theirs with queries, at a time. So many stay in the cache that cores share; with a
quarter, which a core's own holds, products of a thousand queries would have too few vectors."""

_PRODUCTS_ON_GPU = 1 << 24
"""The same on a GPU, where a whole block may be multiplied at once: some 300 MiB if every product is kept."""

CPU = torch.device("cpu")

_PAIRS = 256
"""Pairs that are scored at a time: what they take stays in a core's cache."""


class Asked:
    """The queries of a search, with what every product needs of them.

    Args:
        query_vectors: (Q, d) float16 or float32; a zero vector scores 0 with everything.
        device: that multiplies. What is kept is scored by the processor, wherever it was found.

    Raises:
        ValueError: a value that is not finite.
    """

    def __init__(self, query_vectors: Vectors, device: torch.device = CPU) -> None:
        parts = [block for _, block in blocks("query vectors", query_vectors, BLOCK_ROWS)]
        self.vectors = np.concatenate(parts) if parts else np.empty(query_vectors.shape, np.float32)
        self.double = self.vectors.astype(np.float64)
        self.norms = norms(self.vectors)
        lengths = np.where(self.norms > 0, self.norms, 1.0)[:, None]
        self.directions = torch.from_numpy((self.vectors / lengths).astype(np.float32)).to(device)
        self.error = product_error(query_vectors.shape[1])
        self._held = threading.local()

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def width(self) -> int:
        """The d of the queries."""
        return self.vectors.shape[1]

    @property
    def device(self) -> torch.device:
        """Where products are formed."""
        return self.directions.device

    def rows_at_once(self, vectors: int) -> int:
        """How many of a block's vectors are multiplied at a time where nobody says."""
        most, products = (_ROWS, _PRODUCTS) if self.device.type == "cpu" else (vectors, _PRODUCTS_ON_GPU)
        return max(64, min(most, products // max(1, len(self))))

    def buffers(self, rows: int) -> "Buffers":
        """Those of the thread that asks, for at least so many rows."""
        held: Buffers | None = getattr(self._held, "buffers", None)
        if held is None or len(held.single) < rows:
            self._held.buffers = held = Buffers(len(self), self.width, rows, self.device)
        return held


class Buffers:
    """Memory that a thread uses again for each product: fetching it anew costs half as much as the work.

    Shapes: Q queries, n rows of a product, d embedding width.
    """

    def __init__(self, queries: int, width: int, rows: int, device: torch.device) -> None:
        self.single = torch.empty((rows, width), dtype=torch.float32, device=device)
        """(n, d) at most, for vectors."""
        self.double = torch.empty((rows, width), dtype=torch.float64, device=device)
        """The same, wide enough for sums whose float32 is sure."""
        self._products = torch.empty(queries * rows, dtype=torch.float32, device=device)
        self._bins = torch.empty(queries * rows, dtype=torch.int16, device=device)
        self._queries = queries

    def products(self, rows: int) -> torch.Tensor:
        """(Q, n) float32 for a product of so many rows."""
        return self._products[: self._queries * rows].view(self._queries, rows)

    def bins(self, rows: int) -> torch.Tensor:
        """(Q, n) int16 for the bins of its scores."""
        return self._bins[: self._queries * rows].view(self._queries, rows)


@dataclass(frozen=True, eq=False)
class Looked:
    """What was seen in a block of vectors.

    Every pair is in `query`, `row` and `score` that may be among the query's K best of the corpus, and some
    that are not.
    """

    query: npt.NDArray[np.int64]
    """(M,)"""
    row: npt.NDArray[np.int64]
    """(M,) positions in the block."""
    score: npt.NDArray[np.float32]
    """(M,) their cosines, as `cosine.cosines` has them."""
    group: npt.NDArray[np.float32]
    """(N,) as `group.group_scores` has them; empty if not asked for."""
    histogram: ScoreHistogram
    """Of all Q x N products; empty if not asked for."""


def product_error(width: int) -> float:
    """Bound on |product - score|: Higham (2002), eq. 3.5, with unit roundoff u = 2^-24.

    A dot product of unit vectors is off by at most about d u; scaling a row to unit length adds a few u, a
    query as much, and the score's own rounding u: d u and a few u. The sum is multiplied by four, to cover
    the terms of second order and the rounding of the bar itself.
    """
    return (4 * width + 32) * 2.0**-24


def look(
    asked: Asked,
    vectors: npt.NDArray[np.floating],
    k: int,
    bar: npt.NDArray[np.float32],
    *,
    centre: npt.NDArray[np.float64] | None = None,
    counted: bool = False,
    rows: int | None = None,
    name: str = "vectors",
    first: int = 0,
) -> Looked:
    """Look at a block of vectors once.

    It keeps to the thread that calls it, beside which others may look at other blocks.

    Args:
        vectors: (N, d) float16 or float32, of any length; a zero vector scores 0.
        k: how many best are wanted of each query.
        bar: (Q,) score that k examples of the corpus are known to reach, -inf where so many are not known.
        centre: (1, d) `group.mean_direction` of the queries, if their mean cosines are wanted.
        counted: whether scores are counted.
        rows: vectors in one product; changes memory and speed, never the scores. As many as fit a cache if
            None.
        name, first: what the vectors are called in an error, and the position of the first of them.

    Raises:
        ValueError: a value that is not finite; or torch may form float32 products with less than their
            precision, whose error is not bounded here.
    """
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        raise ValueError(f"float32 products have torch's precision {precision!r}; a search needs 'highest'")
    likely = _Likely(len(asked), k, bar, asked.error)
    counts = np.zeros(BINS, np.int64)
    group = np.empty(0 if centre is None else len(vectors), np.float32)
    lengths = np.empty(len(vectors))
    whole = _tensor(vectors)
    there = whole.to(asked.device)
    middle = None if centre is None else torch.from_numpy(centre[0]).to(asked.device)
    rows = rows or asked.rows_at_once(len(vectors))
    held = asked.buffers(rows)
    for start in range(0, len(vectors), rows):
        part = there[start : start + rows]
        single, double = held.single[: len(part)], held.double[: len(part)]
        double.copy_(single.copy_(part))
        norm = torch.linalg.vector_norm(double, dim=1)
        # In float64 no sum of squares of float32 overflows: what is not finite was not so before.
        finite = torch.isfinite(norm)
        if not finite.all():
            place = first + start + int(torch.argmin(finite.to(torch.uint8)))
            raise ValueError(f"{name}: row {place} holds a value that is not finite")
        lengths[start : start + len(part)] = norm.cpu().numpy()
        inverse = torch.where(norm > 0, 1 / norm, 0.0)
        if centre is not None and middle is not None:
            means = (double @ middle) * inverse
            group[start : start + len(part)] = settled(
                means.cpu().numpy(), vectors[start : start + len(part)], centre
            )
        # Lengths of float32 may be such that their inverse is none; of the others' float32 is enough.
        if vectors.dtype == np.float32:
            single.copy_(double.mul_(inverse[:, None]))
        else:
            single.mul_(inverse.to(torch.float32)[:, None])
        products = torch.mm(asked.directions, single.T, out=held.products(len(part)))
        likely.add(products, start)
        if counted:
            counts += _counts(products, held.bins(len(part)))
    query, row = likely.pairs()
    different, places = np.unique(row, return_inverse=True)
    some = whole[torch.from_numpy(different)].to(torch.float64).numpy()
    score = _scores(asked, some, lengths[different], query, places)
    return Looked(query, row, score, group, ScoreHistogram(counts))


def _tensor(vectors: npt.NDArray[np.floating]) -> torch.Tensor:
    # torch takes no memory that it may not write to, which Arrow's is.
    return torch.from_numpy(vectors if vectors.flags.writeable else vectors.copy())


class _Likely:
    """The pairs of a block whose products say that they may be among a query's k best.

    k rows score at least the k-th product less one error; a row that is to stand beside them can look worse
    by one error more. So products tell pairs apart as long as there are many of them, and only those that
    are left are scored.
    """

    def __init__(self, queries: int, k: int, bar: npt.NDArray[np.float32], error: float) -> None:
        self._queries, self._k, self._error = queries, k, np.float32(error)
        self._floor = bar - self._error
        self._held = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
        self._most = 2 * queries * k

    def add(self, products: torch.Tensor, first: int) -> None:
        """Take in the products (Q, n) with the rows that begin at `first`."""
        rows = products.shape[1]
        places, found = reaching(products, self._floor)
        if len(places) > self._queries * self._k and rows > self._k:
            kth = kth_highest(products, self._k)
            self._floor = np.maximum(self._floor, kth - 2 * self._error)
            places, found = reaching(products, self._floor)
        if not len(places):
            return
        query, row = np.divmod(places, rows)
        self._held.append((query, row + first, found))
        if sum(len(query) for query, *_ in self._held) > self._most:
            self._cut()

    def pairs(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(M,) queries and rows."""
        self._cut()
        ((query, row, _),) = self._held
        return query, row

    def _cut(self) -> None:
        query, row, product = (np.concatenate(columns) for columns in zip(*self._held, strict=True))
        kth = kth_best(query, product, self._queries, self._k)
        self._floor = np.maximum(self._floor, kth - 2 * self._error)
        kept = product >= self._floor[query]
        self._held = [(query[kept], row[kept], product[kept])]
        # What cannot be told apart stays, and need not be looked at again for each row that comes.
        self._most = max(self._most, 2 * int(np.count_nonzero(kept)))


def _scores(
    asked: Asked,
    vectors: npt.NDArray[np.float64],
    lengths: npt.NDArray[np.float64],
    query: npt.NDArray[np.int64],
    row: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """(M,) `cosine.cosines` of the pairs.

    Args:
        vectors, lengths: (n, d), and the norms (n,) by any order of summation.
    """
    scores = np.empty(len(query), dtype=np.float32)
    for start in range(0, len(query), _PAIRS):
        left, right = query[start : start + _PAIRS], row[start : start + _PAIRS]
        scale = asked.norms[left] * lengths[right]
        scale[scale == 0] = 1
        means = np.einsum("md,md->m", asked.double[left], vectors[right]) / scale
        scores[start : start + _PAIRS], doubtful = nearest_float32(means, asked.width, 1.0)
        again = vectors[right[doubtful]].astype(np.float32)
        scores[start + doubtful] = cosines(asked.vectors[left[doubtful]], again)
    return scores


def _counts(products: torch.Tensor, bins: torch.Tensor) -> npt.NDArray[np.int64]:
    """(BINS,) counts of products, which are used up: their memory is written over, as that of `bins` is."""
    # One bin more on either side takes what rounding has put beyond -1 and 1.
    bins.copy_(products.mul_(BINS // 2).add_(BINS // 2 + 1))
    counts = torch.bincount(bins.view(-1), minlength=BINS + 2).cpu().numpy()
    counts[1] += counts[0]
    counts[BINS] += counts[BINS + 1]
    return counts[1 : BINS + 1]
