"""Dot products of gradients: influence with the strength of an example's gradient in it.

Shapes: Q queries, P pool examples, D sketch width.

One step of gradient descent on a pool example p with rate eta changes a query's loss by
-eta <g_q, g_p> to first order (Pruthi et al., "Estimating Training Data Influence by Tracing Gradient
Descent", arXiv 2002.08484, section 3.1). The cosine leaves out both lengths, and with them the outliers:
an example with a large gradient is then no match for every query.
"""

import numpy as np
import numpy.typing as npt

from influcoder_ray.attribution.cosine import Vectors, check_vectors


def dot_influence(
    query_sketches: Vectors,
    query_norms: npt.NDArray[np.float32],
    pool_sketches: Vectors,
    pool_norms: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Estimated dot products (Q, P) float32 of the gradients of queries and pool examples.

    Takes two tables of sketches as they are stored: `tables.arrays.sketch_matrix` of one, and its
    column `sketch_norm`. Over the seed of the sketch the estimate is unbiased; its standard deviation is
    at most sqrt(2 / D) times the product of the two gradients' lengths. Not `gradient_norm`: that is
    the length of the unsketched gradient, with which the estimate would be biased.

    Args:
        query_sketches: (Q, D) float16 or float32, of unit length.
        query_norms: (Q,) their lengths before they were scaled to 1.
        pool_sketches: (P, D) likewise.
        pool_norms: (P,) likewise.

    Raises:
        ValueError: shapes or types that do not fit.
    """
    check_vectors("query sketches", query_sketches)
    check_vectors("pool sketches", pool_sketches, query_sketches.shape[1])
    for name, sketches, norms in (
        ("query", query_sketches, query_norms),
        ("pool", pool_sketches, pool_norms),
    ):
        if norms.shape != (len(sketches),):
            raise ValueError(
                f"{name} norms have shape {norms.shape} for {len(sketches)} sketches; one each is needed"
            )
    cosines = query_sketches.astype(np.float32) @ pool_sketches.astype(np.float32).T
    return np.asarray(cosines * np.outer(query_norms, pool_norms), dtype=np.float32)
