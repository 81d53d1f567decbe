"""How well a ranking finds answers that are known: the rows that support a query, or rows with a label.

Shapes: Q queries, P pool rows, R bootstrap resamples. Scores are (Q, P), higher = earlier in the ranking.

Rows of equal score have no order. A figure is then the mean over all orders of them, so that it depends on
the scores alone and a method gains nothing by where a file happens to hold its rows (McSherry and Najork,
"Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores", ECIR 2008).
Average precision alone follows scikit-learn: all rows of equal score are taken at once.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from influcoder_ray.evaluation.agreement import Resampled, bootstrap_rows

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# The interval that `interval` gives: 95 of 100 resamples fall into it.
_TAILS = (2.5, 97.5)


def recall_at(scores: npt.ArrayLike, relevant: npt.ArrayLike, k: int) -> Array:
    """Share of each query's relevant rows among its k best, over the greatest share that k rows allow.

    A query with more than k relevant rows can reach 1 all the same: the divisor is the smaller of k and their
    number.

    Args:
        scores: (Q, P).
        relevant: (Q, P) bool, at least one in each row.
        k: at least 1; capped at P.

    Returns:
        (Q,) float64 in [0, 1].

    Raises:
        ValueError: shapes differ, are not two-dimensional or are empty; a score is not finite; a query has no
            relevant row; k < 1.
    """
    values, truth = _checked(scores, relevant)
    if k < 1:
        raise ValueError(f"k is {k}; recall needs a k of at least 1")
    k = min(k, values.shape[1])
    return _hits(values, truth, np.full(len(values), k)) / np.minimum(truth.sum(axis=1), k)


def r_precision(scores: npt.ArrayLike, relevant: npt.ArrayLike) -> Array:
    """Share of relevant rows among each query's R best, where R is the number of its relevant rows.

    Args, errors: as `recall_at`.

    Returns:
        (Q,) float64 in [0, 1].

    Source: Buckley and Voorhees, "Evaluating Evaluation Measure Stability" (SIGIR 2000).
    """
    values, truth = _checked(scores, relevant)
    sizes = truth.sum(axis=1)
    return _hits(values, truth, sizes) / sizes


def reciprocal_rank(scores: npt.ArrayLike, relevant: npt.ArrayLike) -> Array:
    """One over the rank of each query's first relevant row; its mean over queries is the MRR.

    Where the first relevant score is shared by g rows, r of them relevant, and a rows stand above, the first
    relevant one is the j-th of the g with probability C(g - j, r - 1) / C(g, r), and the figure is the mean
    of 1 / (a + j).

    Args, errors: as `recall_at`.

    Returns:
        (Q,) float64 in (0, 1].
    """
    values, truth = _checked(scores, relevant)
    best = np.where(truth, values, -np.inf).max(axis=1, keepdims=True)
    above = (values > best).sum(axis=1)
    tied = values == best
    sizes, wanted = tied.sum(axis=1), (tied & truth).sum(axis=1)
    found = np.empty(len(values))
    for query, (a, g, r) in enumerate(zip(above.tolist(), sizes.tolist(), wanted.tolist(), strict=True)):
        # The chance that none of the first j - 1 is relevant, and then that the j-th is.
        none_yet, mean = 1.0, 0.0
        for j in range(1, g - r + 2):
            hit = r / (g - j + 1)
            mean += none_yet * hit / (a + j)
            none_yet *= 1 - hit
        found[query] = mean
    return found


def average_precision(
    scores: npt.ArrayLike, positive: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float:
    """Area under the precision-recall curve of one ranking, by steps: AUPRC as scikit-learn computes it.

    Args:
        scores: (P,).
        positive: (P,) bool, at least one.
        weights: (P,) for how many rows each stands; 1 each if None.

    Returns:
        The sum over different scores s, falling, of (recall at s - recall before) x precision at s.

    Raises:
        ValueError: shapes differ; a score is not finite; there is no positive row with a weight.
    """
    values, truth = _checked(np.atleast_2d(scores), np.atleast_2d(positive))
    ones = np.ones(values.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    return float(_average_precisions(values[0], truth[0], ones[None])[0])


def resample_queries(
    measures: Mapping[str, npt.ArrayLike],
    *,
    resamples: int,
    seed: int,
    groups: Sequence[str] | None = None,
) -> Resampled:
    """The mean of each measure over all queries, and over resamples of them with replacement.

    Args:
        measures: by name, (Q,) each. With one seed and Q, two methods are resampled alike, so that
            `comparison.lead` of them is paired.
        groups: (Q,) names; for each of them a measure "<name>, <group>" is added, over its queries alone.

    Raises:
        ValueError: fewer than 2 resamples.

    Source: Efron (1979), the nonparametric bootstrap.
    """
    estimates: dict[str, float] = {}
    draws: dict[str, Array] = {}
    names = np.asarray(groups, dtype=object)
    for group in (None, *sorted(set(groups or ()))):
        for name, values in measures.items():
            chosen = np.asarray(values, dtype=np.float64)
            if group is not None:
                name, chosen = f"{name}, {group}", chosen[names == group]
            rows = bootstrap_rows(len(chosen), resamples, seed)
            estimates[name], draws[name] = float(chosen.mean()), np.asarray(chosen[rows].mean(axis=1))
    return Resampled(estimates, draws)


def resample_pool(
    scores: npt.ArrayLike,
    positive: npt.ArrayLike,
    *,
    resamples: int,
    seed: int,
    weights: npt.ArrayLike | None = None,
    groups: Sequence[str] | None = None,
) -> Resampled:
    """Average precision on all pool rows, and on resamples of them with replacement.

    Each group's positive rows and the rows that are not positive are drawn apart (a stratified bootstrap), so
    that every resample has as many of each.

    Args:
        scores: (P,).
        positive: (P,) bool.
        weights: as `average_precision`.
        groups: (P,) names. For each group of a positive row a measure "average_precision, <group>" is added,
            in which its positive rows are the only ones; those that are not positive are the same in all.

    Returns:
        With one seed and the same rows two methods are resampled alike.

    Raises:
        ValueError: as `average_precision`; fewer than 2 resamples.
    """
    values, truth = _checked(np.atleast_2d(scores), np.atleast_2d(positive))
    row, labels = values[0], truth[0]
    ones = np.ones(len(row)) if weights is None else np.asarray(weights, dtype=np.float64)
    names = np.full(len(row), "", dtype=object) if groups is None else np.asarray(groups, dtype=object)
    parts = {name: labels & (names == name) for name in sorted(set(names[labels]))}
    strata = [stratum for stratum in (~labels, *parts.values()) if stratum.any()]
    counts = np.zeros((resamples, len(row)))
    for number, stratum in enumerate(strata):
        rows = np.flatnonzero(stratum)
        for draw, drawn in enumerate(bootstrap_rows(len(rows), resamples, seed + number)):
            counts[draw] += np.bincount(rows[drawn], minlength=len(row))
    estimates: dict[str, float] = {}
    draws: dict[str, Array] = {}
    for name, wanted in {"": labels, **(parts if groups is not None else {})}.items():
        there = ~labels | wanted
        measure = f"average_precision, {name}" if name else "average_precision"
        estimates[measure] = float(_average_precisions(row[there], labels[there], ones[None, there])[0])
        draws[measure] = _average_precisions(row[there], labels[there], counts[:, there] * ones[there])
    return Resampled(estimates, draws)


def mean_over_seeds(seeds: Sequence[Resampled]) -> Resampled:
    """The mean of S trainings that differ in their seed, resample by resample."""
    return Resampled(
        {name: float(np.mean([one.estimates[name] for one in seeds])) for name in seeds[0].estimates},
        {name: np.mean([one.draws[name] for one in seeds], axis=0) for name in seeds[0].draws},
    )


def interval(resampled: Resampled) -> dict[str, dict[str, float]]:
    """The figure of each measure with its interval: {"mean", "low", "high"}, 95 of 100 resamples in it."""
    found = {}
    for name, draws in resampled.draws.items():
        low, high = np.percentile(draws, _TAILS)
        found[name] = {"mean": resampled.estimates[name], "low": float(low), "high": float(high)}
    return found


def reference_scores(
    positives: npt.ArrayLike, negatives: npt.ArrayLike | None = None, *, negative_weight: float = 1.0
) -> Array:
    """One score a pool row (P,): its mean score over references, less that over negative references.

    Args:
        positives: (Q, P) scores of the references that rows are to be like.
        negatives: (N, P) of those that they are not to be like, on the same scale; none if None.
        negative_weight: what their mean is multiplied by, 0 or more.

    Raises:
        ValueError: no references, or the two are of different pools.
    """
    wanted = np.asarray(positives, dtype=np.float64)
    if wanted.ndim != 2 or len(wanted) == 0:
        raise ValueError(
            f"positives have shape {wanted.shape}; references x pool is needed, at least 1 reference"
        )
    if negatives is None:
        return np.asarray(wanted.mean(axis=0))
    unwanted = np.asarray(negatives, dtype=np.float64)
    if unwanted.ndim != 2 or len(unwanted) == 0 or unwanted.shape[1] != wanted.shape[1]:
        raise ValueError(
            f"negatives have shape {unwanted.shape} and positives {wanted.shape}; pools must be equal"
        )
    return np.asarray(wanted.mean(axis=0) - negative_weight * unwanted.mean(axis=0))


def rerank(
    predicted: npt.ArrayLike,
    exact: npt.ArrayLike,
    candidates: int,
    *,
    shared: bool,
    beside: npt.ArrayLike | None = None,
) -> tuple[Array, Mask]:
    """Scores (Q, P) after exact re-ranking, and each query's own candidates, (Q, P) bool.

    The `candidates` rows of each query with the highest predicted scores stand first, by their exact scores;
    the others follow by their predicted ones. Among equal predicted scores the lower position is a candidate.

    Args:
        shared: whether each query ranks the candidates of all queries, as the stage `rerank` does, or its own
            alone.
        beside: (Q, P) scores of a second kind, whose `candidates` best rows of each query are candidates too.

    Raises:
        ValueError: shapes differ, are not two-dimensional or are empty; a score is not finite;
            candidates < 0.
    """
    found, truth = _finite("predicted", predicted), _finite("exact", exact)
    sides = [found] if beside is None else [found, _finite("beside", beside)]
    for name, values in zip(("predicted", "beside"), sides, strict=False):
        if values.shape != truth.shape:
            raise ValueError(f"{name} has shape {values.shape} and exact {truth.shape}; they must be equal")
    if candidates < 0:
        raise ValueError(f"candidates is {candidates}; at least 0 is needed")
    own: Mask = np.zeros(found.shape, dtype=np.bool_)
    for values in sides:
        np.put_along_axis(own, np.argsort(-values, axis=1, kind="stable")[:, :candidates], True, axis=1)
    first = np.broadcast_to(own.any(axis=0), own.shape) if shared else own
    # Both halves are scaled to a width of at most 1 and stand apart by 1, so that neither loses its order.
    return np.where(first, 2 + _spread(truth), _spread(found)), own


def _spread(values: Array) -> Array:
    """(Q, P) in [0, 1], the order of each row and its ties kept."""
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    return (values - low) / np.where(high > low, high - low, 1)


def _hits(values: Array, truth: Mask, depths: npt.NDArray[np.integer]) -> Array:
    """(Q,) the relevant rows among each query's `depths` best, the mean over orders of equal scores."""
    found = np.empty(len(values))
    for query, depth in enumerate(depths.tolist()):
        bar = np.partition(values[query], len(values[query]) - depth)[len(values[query]) - depth]
        above, tied = values[query] > bar, values[query] == bar
        places = depth - above.sum()
        found[query] = (above & truth[query]).sum() + (tied & truth[query]).sum() * places / tied.sum()
    return found


def _average_precisions(values: Array, truth: Mask, weights: Array) -> Array:
    """(R,) average precision of one ranking (P,) with (R, P) weights.

    Raises:
        ValueError: no positive row has a weight.
    """
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    found = np.empty(len(weights))
    for draw, row in enumerate(weights):
        ordered = row[order]
        hits = np.cumsum(ordered * truth[order])[ends]
        seen = np.cumsum(ordered)[ends]
        precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
        total = hits[-1]
        if not total > 0:
            raise ValueError("no positive row has a weight, so there is nothing to find")
        found[draw] = np.diff(hits, prepend=0.0) @ precision / total
    return found


def _checked(scores: npt.ArrayLike, relevant: npt.ArrayLike) -> tuple[Array, Mask]:
    values, truth = _finite("scores", scores), np.asarray(relevant, dtype=np.bool_)
    if values.shape != truth.shape:
        raise ValueError(f"scores have shape {values.shape} and relevant {truth.shape}; they must be equal")
    without = np.flatnonzero(~truth.any(axis=1))
    if len(without):
        raise ValueError(f"query {without[0]} has no relevant row; each needs at least one")
    return values, truth


def _finite(name: str, matrix: npt.ArrayLike) -> Array:
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} has shape {values.shape}; queries x pool is needed, neither of them 0")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds {np.count_nonzero(~np.isfinite(values))} values that are not finite")
    return values
