"""The linear datamodelling score: how well sums of scores foretell what training on a subset does.

Shapes: Q queries, P pool examples, M subsets.

Park et al., "TRAK: Attributing Model Behavior at Scale" (arXiv 2303.14186, section 2.2): a model is trained
on each of M random subsets S_m of the pool. For a query q the score of a method tau is Spearman's rank
correlation over the subsets between the model's measured output f_q(S_m) and the attributed one, the sum of
tau_q over the examples of S_m; the method's is the mean over queries. The output here is the negative loss,
so that more influence goes with more output.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from influcoder_ray.evaluation.agreement import bootstrap_rows, mean_and_std, per_query_rho

Array = npt.NDArray[np.float64]


def datamodelling_rho(
    scores: npt.ArrayLike, subsets: npt.NDArray[np.bool_], losses: npt.NDArray[np.floating]
) -> Array:
    """The correlation (Q,) of each query; its mean is the linear datamodelling score.

    Args:
        scores: (Q, P), higher = more influence.
        subsets: (M, P), whether an example is in a subset.
        losses: (M, Q), the queries' losses after training on each subset.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or there are fewer than 3 subsets.
    """
    return per_query_rho(attributed_outputs(scores, subsets), _outputs(subsets, losses))


def datamodelling_summary(
    scores: npt.ArrayLike,
    subsets: npt.NDArray[np.bool_],
    losses: npt.NDArray[np.floating],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The linear datamodelling score with its spread, and whether it could be chance.

    All queries share the subsets, so that their correlations are not independent: what chance alone gives
    is told by permuting the subsets, of all queries in the same way.

    Args, errors: as `datamodelling_rho`.
        resamples: bootstrap draws of the queries, and permutations.
        seed: of both.

    Returns:
        "mean", the score; "std", over bootstrap resamples of the queries; "chance_std", the standard
        deviation of the score over permutations; "p_value", the share of permutations, the subsets' own
        order counted among them, that score at least as high.
    """
    attributed, measured = attributed_outputs(scores, subsets), _outputs(subsets, losses)
    each = per_query_rho(attributed, measured)
    generator = np.random.default_rng(seed)
    by_chance = np.array(
        [
            per_query_rho(attributed, measured[:, generator.permutation(len(subsets))]).mean()
            for _ in range(resamples)
        ]
    )
    drawn = each[bootstrap_rows(len(each), resamples, seed)].mean(axis=1)
    # Equal scores may differ by rounding where they are summed in another order.
    as_high = int((by_chance >= each.mean() - 1e-12).sum())
    return mean_and_std(float(each.mean()), drawn) | {
        "chance_std": float(np.std(by_chance, ddof=1)),
        "p_value": (1 + as_high) / (1 + resamples),
    }


def attributed_outputs(scores: npt.ArrayLike, subsets: npt.NDArray[np.bool_]) -> Array:
    """What the scores foretell for each query and subset, (Q, M): the sum of scores of its examples.

    Raises:
        ValueError: shapes do not fit, or there are fewer than 3 subsets.
    """
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or subsets.ndim != 2 or matrix.shape[1] != subsets.shape[1]:
        raise ValueError(
            f"scores have shape {matrix.shape} and subsets {subsets.shape}; "
            "queries x pool and subsets x pool are needed"
        )
    if len(subsets) < 3:
        raise ValueError(f"{len(subsets)} subsets have no rank correlation; at least 3 are needed")
    return matrix @ subsets.T.astype(np.float64)


def _outputs(subsets: npt.NDArray[np.bool_], losses: npt.NDArray[np.floating]) -> Array:
    if losses.ndim != 2 or len(losses) != len(subsets):
        raise ValueError(
            f"losses have shape {losses.shape} for {len(subsets)} subsets; one row each is needed"
        )
    return -np.asarray(losses, dtype=np.float64).T
