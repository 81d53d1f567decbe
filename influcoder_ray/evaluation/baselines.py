"""What a prediction of influence has to beat: word overlap (TF-IDF) and chance.

Shapes: Q queries, P pool examples.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer

from influcoder_ray.evaluation.agreement import Summary, mean_and_std, point_estimates


def tfidf_scores(queries: Sequence[str], pool: Sequence[str]) -> npt.NDArray[np.float64]:
    """Cosine of TF-IDF vectors: words, logarithmic term counts, accents stripped, fitted on the pool.

    A text that holds no word of the pool scores 0 everywhere; so does everything where the pool holds
    no words at all.

    Returns:
        (Q, P) float64 in [0, 1].

    Source: Salton and Buckley (1988), by scikit-learn's TfidfVectorizer.
    """
    vectorizer = TfidfVectorizer(sublinear_tf=True, strip_accents="unicode")
    words_of = vectorizer.build_analyzer()
    if not queries or not any(words_of(text) for text in pool):
        return np.zeros((len(queries), len(pool)))
    pool_vectors = vectorizer.fit_transform(pool)
    return np.asarray((vectorizer.transform(queries) @ pool_vectors.T).toarray(), dtype=np.float64)


def random_scores(q: int, p: int, seed: int) -> npt.NDArray[np.float64]:
    """(q, p) float64 drawn uniformly from [-1, 1), the same for the same seed and shape."""
    return np.random.default_rng(seed).uniform(-1.0, 1.0, size=(q, p))


def random_summary(exact: npt.ArrayLike, *, recall_at: Sequence[int], draws: int, seed: int) -> Summary:
    """What chance reaches against (Q, P) exact influence: mean and deviation over draws of random scores.

    Returns:
        The form of `agreement.summarise`; here mean and std are over the draws.

    Raises:
        ValueError: as `agreement.recall_at_k`, and for fewer than 2 draws.
    """
    if draws < 2:
        raise ValueError(f"draws is {draws}; a standard deviation needs at least 2")
    truth = np.asarray(exact, dtype=np.float64)
    if truth.ndim != 2:
        raise ValueError(f"exact has shape {truth.shape}; queries x pool is needed")
    queries, pool = truth.shape
    estimates = [
        point_estimates(random_scores(queries, pool, int(draw_seed)), truth, recall_at)
        for draw_seed in np.random.SeedSequence(seed).generate_state(draws, np.uint64)
    ]
    columns = {name: [estimate[name] for estimate in estimates] for name in estimates[0]}
    return {name: mean_and_std(float(np.mean(values)), values) for name, values in columns.items()}
