"""The score: a cosine whose bits depend on its two vectors alone.

Shapes: N examples, Q queries, M pairs, d embedding width.

A float32 matrix product may round the same dot product differently when the matrix beside it has
another shape, so a score taken from one would change with how a corpus was cut into shards. Here
products of float32 values are formed in float64, where they are exact, and added in an order fixed by
the width alone; each step is an elementwise IEEE operation, so the shape of the batch, the BLAS and the
machine do not show in the result.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

BLOCK_ROWS = 4096
# Terms of so many rows stay in a core's cache while they are added up.
_CACHED_ROWS = 256

Vectors = npt.NDArray[np.float16] | npt.NDArray[np.float32]


def check_vectors(name: str, vectors: Vectors, width: int | None = None) -> None:
    """Refuse what is not (N, d) float16 or float32, or not of the given width.

    Raises:
        ValueError: naming the array and what is wrong with it.
    """
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise ValueError(f"{name} have shape {vectors.shape}; examples x width is needed")
    if vectors.dtype not in (np.float16, np.float32):
        raise ValueError(f"{name} are {vectors.dtype}; float16 or float32 is needed")
    if width is not None and vectors.shape[1] != width:
        raise ValueError(f"{name} have width {vectors.shape[1]}; the queries have {width}")


def blocks(name: str, vectors: Vectors, block_rows: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield (first row, (at most block_rows, d) float32) in order, each checked to be finite.

    Raises:
        ValueError: block_rows < 1, or a row that is not finite, named by its position.
    """
    if block_rows < 1:
        raise ValueError(f"block_rows is {block_rows}; at least 1 is needed")
    for start in range(0, len(vectors), block_rows):
        block = vectors[start : start + block_rows].astype(np.float32)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise ValueError(f"{name}: row {start + int(np.argmin(finite))} holds a value that is not finite")
        yield start, block


def ordered_dot(left: npt.NDArray[np.floating], right: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Dot products row by row in float64, the upper half of the terms added to the lower until one is left.

    Args:
        left, right: (M, d); one of them may be (1, d).

    Returns:
        (M,) float64; for float32 inputs within d * 2^-53 of the true sum of absolute terms.
    """
    dots = np.empty(max(len(left), len(right)) if min(len(left), len(right)) else 0)
    for start in range(0, len(dots), _CACHED_ROWS):
        some = slice(start, start + _CACHED_ROWS)
        terms = np.multiply(
            left if len(left) == 1 else left[some],
            right if len(right) == 1 else right[some],
            dtype=np.float64,
        )
        width = terms.shape[1]
        while width > 1:
            half = (width + 1) // 2
            terms[:, : width - half] += terms[:, half:width]
            width = half
        dots[some] = terms[:, 0]
    return dots


def norms(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """(M,) Euclidean norms of (M, d) rows, as reproducible as `ordered_dot`."""
    return np.sqrt(ordered_dot(vectors, vectors))


def cosines(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(M,) cosines of the rows of two (M, d) matrices; a zero vector's cosine is 0 by convention.

    The last rounding, to float32, also brings the result into [-1, 1].
    """
    dots = ordered_dot(left, right)
    scale = norms(left) * norms(right)
    return np.divide(dots, scale, out=np.zeros_like(dots), where=scale > 0).astype(np.float32)


def nearest_float32(
    values: npt.NDArray[np.float64], width: int, most: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """float32 values (M,) that do not show in which order float64 sums were taken, and those that may (R,).

    A float64 dot product, taken in any order, is off by at most d u |x| |y|, u = 2^-53, and a norm by half as
    much of itself. Where the float32 next to a quotient of them is the same a few such errors to either side,
    it is that of `ordered_dot`'s order too. The others, one of some 10,000, are to be computed again in that
    order: the rounding test of Ziv (ACM TOMS 17(3), 1991, doi 10.1145/114697.116813).

    Args:
        values: dot products of vectors over the norms of one or both.
        width: the d of the vectors.
        most: the most that such a value can be.
    """
    error = (4 * width + 32) * 2.0**-53 * most
    lower = (values - error).astype(np.float32)
    return lower, np.flatnonzero(lower != (values + error).astype(np.float32))
