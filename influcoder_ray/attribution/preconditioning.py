"""TrackStar's mixed Hessian: directions that the queries share with each other are turned down.

Shapes: N examples, D sketch width, n rows that were fitted.

Chang et al., "Scalable Influence and Fact Tracing for Large Language Model Pretraining"
(arXiv 2410.17413, section 3): a feature is the projected gradient times R^(-1/2), then scaled to unit
length, and R = lambda R_eval + (1 - lambda) R_train mixes the autocorrelations of the queries' and the
pool's projected gradients. Queries of one task share a template and a format; R_eval is large along
what they share, so that a match there counts for little.

Three choices stand here. R is that of gradients in their own length: unit length comes last in the
paper, so R does not see it. Each side's autocorrelation is a mean over its examples, so that lambda
does not hang on how many were sampled. And R + mu I is inverted, with mu = damping x the mean
eigenvalue; the mean goes over the min(n, D) eigenvalues that n rows can show, for those that are zero
because D is wide say nothing about the scale of gradients. Grosse et al. (arXiv 2308.03296) take a
damping of 0.1 for EK-FAC. Where n is far below D, as here, the small eigenvalues are noise of the
sample, which so little damping lifts to the height of the rest; 1 turns down what stands out of the
mean and leaves what does not.

R is D x D with D up to 262,144 and is never formed. With A (n, D) the rows, each times the root of its
weight, R = A^T A, and with A A^T = U diag(e) U^T

    (R + mu I)^(-1/2) = mu^(-1/2) (I + A^T U diag(c) U^T A),
    c = -1 / (mu r (1 + r)), r = sqrt(1 + e / mu).

This is exact: on the span of the rows it divides by sqrt(e + mu), off it by sqrt(mu). No eigenvalue is
divided by, so that none has to be cut off. The factor mu^(-1/2) goes away with the unit length.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from influcoder_ray.attribution.cosine import Vectors, check_vectors

_COLUMNS = 4096


@dataclass(frozen=True, eq=False)
class MixedHessian:
    """A fitted R: `rows` A (n, D) float32, n at most D, and `correction` U diag(c) U^T (n, n) float64."""

    rows: npt.NDArray[np.float32]
    correction: npt.NDArray[np.float64]

    @staticmethod
    def fit(queries: Vectors, pool: Vectors, *, mixing: float, damping: float) -> "MixedHessian":
        """The mixed Hessian of two samples.

        Takes 4 D bytes a row beyond the inputs, 2 n^2 D operations and an eigendecomposition of n x n,
        both in float64; of rows that are more than D, what D of them would take and their QR.

        Args:
            queries: (Q, D) sketches in their own length, float16 or float32.
            pool: (P, D) likewise.
            mixing: lambda, the share of the queries; a side whose share is zero is not looked at.
            damping: mu as a multiple of the mean eigenvalue, above zero.

        Raises:
            ValueError: mixing or damping out of range; shapes or types that do not fit; a side that has a
                share and no rows; a value that is not finite; or rows that are all zero.
        """
        if not 0 <= mixing <= 1:
            raise ValueError(f"mixing is {mixing}; a share from 0 to 1 is needed")
        if not damping > 0:
            raise ValueError(f"damping is {damping}; more than 0 is needed")
        check_vectors("queries", queries)
        check_vectors("pool", pool, queries.shape[1])
        weighted = []
        for name, sketches, share in (("queries", queries, mixing), ("pool", pool, 1 - mixing)):
            if share == 0:
                continue
            if len(sketches) == 0:
                raise ValueError(f"{name} are empty and have a share of {share}; at least 1 row is needed")
            weighted.append(sketches.astype(np.float32) * np.float32(np.sqrt(share / len(sketches))))
        rows = np.concatenate(weighted)
        if len(rows) > rows.shape[1]:
            # A^T A is that of the triangle, which has D rows however many were given.
            rows = np.asarray(np.linalg.qr(rows.astype(np.float64), mode="r"), dtype=np.float32)
        gram = _products(rows, rows)
        if not np.isfinite(gram).all():
            raise ValueError("sketches hold a value that is not finite, so they have no Hessian")
        eigenvalues, vectors = np.linalg.eigh(gram)
        mu = damping * np.trace(gram) / min(rows.shape)
        if mu == 0:
            raise ValueError("sketches are all zero, so they have no Hessian")
        # Rounding takes eigenvalues that are zero a little below it.
        root = np.sqrt(1 + np.maximum(eigenvalues, 0) / mu)
        return MixedHessian(rows, (vectors * (-1 / (mu * root * (1 + root)))) @ vectors.T)

    def apply(self, sketches: Vectors) -> npt.NDArray[np.float32]:
        """Features (N, D) of unit length: (R + mu I)^(-1/2) x, whatever the length of x.

        A zero sketch stays zero.

        Args:
            sketches: (N, D) float16 or float32.

        Raises:
            ValueError: shapes or types that do not fit.
        """
        features, squares = self._transformed(sketches)
        squares[squares == 0] = 1
        features /= np.sqrt(squares)[:, None].astype(np.float32)
        return features

    def transform(self, sketches: Vectors) -> npt.NDArray[np.float32]:
        """mu^(1/2) (R + mu I)^(-1/2) x (N, D): a symmetric linear map; `apply` is its rows at length 1.

        Args:
            sketches: (N, D) float16 or float32.

        Raises:
            ValueError: shapes or types that do not fit.
        """
        return self._transformed(sketches)[0]

    def _transformed(self, sketches: Vectors) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """What `transform` gives, and the squared lengths (N,) of its rows before they are rounded."""
        check_vectors("sketches", sketches, self.rows.shape[1])
        shares = _products(sketches, self.rows) @ self.correction
        features = np.empty(sketches.shape, dtype=np.float32)
        squares = np.zeros(len(sketches))
        for start in range(0, sketches.shape[1], _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            # In float64: along the largest eigenvalues almost all of a sketch is taken away.
            block = sketches[:, columns] + shares @ self.rows[:, columns].astype(np.float64)
            squares += np.einsum("nd,nd->n", block, block)
            features[:, columns] = block
        return features, squares


def _products(left: Vectors, right: Vectors) -> npt.NDArray[np.float64]:
    """All dot products of the rows of (L, D) and (M, D): (L, M), a block of columns at a time."""
    products = np.zeros((len(left), len(right)))
    for start in range(0, left.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        products += left[:, columns].astype(np.float64) @ right[:, columns].astype(np.float64).T
    return products
