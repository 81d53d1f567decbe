"""What the sketch costs: cosines of sketches beside cosines of the gradients that they stand for.

Shapes: N examples, G gradient entries, D sketch width.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from influcoder_ray.evaluation.agreement import per_query_rho

_COLUMNS = 1 << 20


def sketch_fidelity(
    gradients: npt.NDArray[np.floating], sketches: npt.NDArray[np.floating]
) -> dict[str, Any]:
    """Compare the cosines of all unordered pairs of examples before and after sketching.

    Products are summed in float64, a block of columns at a time, so the memory beyond the inputs does
    not grow with G.

    Args:
        gradients: (N, G) exact gradients, float32.
        sketches: (N, D) sketches of the same examples in the same order, float16 or float32.

    Returns:
        "examples" (N), "pairs" (N (N - 1) / 2), "mean_absolute_error" and "max_absolute_error" of the
        cosines, "rho" (Spearman's over the pairs; 0 where either side is constant, so for one pair) and
        "width" (D).

    Raises:
        ValueError: the example counts differ, N < 2, or a row is zero or not finite.
    """
    if gradients.ndim != 2 or sketches.ndim != 2 or len(gradients) != len(sketches):
        raise ValueError(
            f"gradients have shape {gradients.shape} and sketches {sketches.shape}; "
            "both need two dimensions, with one row for each of the same examples"
        )
    examples = len(gradients)
    if examples < 2:
        raise ValueError(f"{examples} examples make no pair; at least 2 are needed")
    pairs = np.triu_indices(examples, k=1)
    exact = _cosines("gradients", gradients)[pairs]
    sketched = _cosines("sketches", sketches)[pairs]
    error = np.abs(sketched - exact)
    return {
        "examples": examples,
        "pairs": len(error),
        "mean_absolute_error": float(error.mean()),
        "max_absolute_error": float(error.max()),
        "rho": float(per_query_rho(sketched[None], exact[None])[0]),
        "width": int(sketches.shape[1]),
    }


def _cosines(name: str, rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    products = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], _COLUMNS):
        block = rows[:, start : start + _COLUMNS].astype(np.float64)
        if not np.isfinite(block).all():
            row = int(np.argwhere(~np.isfinite(block))[0, 0])
            raise ValueError(f"{name}: row {row} holds a value that is not finite")
        products += block @ block.T
    norms = np.sqrt(np.diagonal(products))
    if not norms.all():
        raise ValueError(f"{name}: row {int(np.argmin(norms))} is zero, so it has no cosine")
    return np.clip(products / np.outer(norms, norms), -1.0, 1.0)
