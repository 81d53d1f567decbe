"""What a prediction of influence has to beat: word overlap (TF-IDF, BM25) and chance.

Shapes: Q queries, P pool examples, R bootstrap resamples.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from influcoder_ray.evaluation.agreement import Resampled, Summary, mean_and_std, point_estimates, resample

# How soon repeats of a word count no more, and how much a text's length counts: the usual values.
BM25_K1, BM25_B = 1.2, 0.75


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


def bm25_scores(queries: Sequence[str], pool: Sequence[str]) -> npt.NDArray[np.float64]:
    """BM25 of each pool text for each query, with the words that `tfidf_scores` sees.

    A word that stands f times in a pool text of n words adds, for each time that it stands in the query,
    idf f / (f + k1 (1 - b + b n / mean n)), where idf = log(1 + (P - p + .5) / (p + .5)) for a word that
    p of the P pool texts hold: never negative, so that no shared word counts against a text.

    Returns:
        (Q, P) float64, 0 or more; all 0 where the pool holds no words.

    Source: Robertson and Zaragoza (2009), equation 3.15; the idf of Lucene's BM25Similarity.
    """
    vectorizer = CountVectorizer(strip_accents="unicode")
    words_of = vectorizer.build_analyzer()
    if not queries or not any(words_of(text) for text in pool):
        return np.zeros((len(queries), len(pool)))
    counts = vectorizer.fit_transform(pool).astype(np.float64)
    texts, words = counts.shape
    lengths = np.asarray(counts.sum(axis=1)).reshape(-1)
    holding = np.bincount(counts.indices, minlength=words)
    idf = np.log1p((texts - holding + 0.5) / (holding + 0.5))
    damping = BM25_K1 * (1 - BM25_B + BM25_B * lengths / lengths.mean())
    text_of = np.repeat(np.arange(texts), np.diff(counts.indptr))
    counts.data *= idf[counts.indices] / (counts.data + damping[text_of])
    return np.asarray((vectorizer.transform(queries) @ counts.T).toarray(), dtype=np.float64)


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
    scores = _random_draws(exact, draws, seed)
    estimates = [point_estimates(drawn, exact, recall_at) for drawn in scores]
    columns = {name: [estimate[name] for estimate in estimates] for name in estimates[0]}
    return {name: mean_and_std(float(np.mean(values)), values) for name, values in columns.items()}


def resample_random(
    exact: npt.ArrayLike, *, recall_at: Sequence[int], draws: int, rows: npt.NDArray[np.int64], seed: int
) -> Resampled:
    """What chance reaches on each of the (R, Q) resamples of the queries, to be compared with a method.

    Resample r is ranked by random draw r modulo `draws`, so that the deviation of a difference holds
    both: that of the queries and that of chance. The estimates are means over the draws.

    Raises:
        ValueError: as `random_summary`.
    """
    scores = _random_draws(exact, draws, seed)
    parts = [
        resample(drawn, exact, recall_at=recall_at, rows=rows[number::draws])
        for number, drawn in enumerate(scores)
    ]
    estimates = {name: float(np.mean([part.estimates[name] for part in parts])) for name in parts[0].draws}
    combined = {name: np.empty(len(rows)) for name in estimates}
    for number, part in enumerate(parts):
        for name, values in part.draws.items():
            combined[name][number::draws] = values
    return Resampled(estimates, combined)


def _random_draws(exact: npt.ArrayLike, draws: int, seed: int) -> Iterator[npt.NDArray[np.float64]]:
    """Random scores in the shape of (Q, P) `exact`, one draw after the other."""
    if draws < 2:
        raise ValueError(f"draws is {draws}; a standard deviation needs at least 2")
    shape = np.shape(exact)
    if len(shape) != 2:
        raise ValueError(f"exact has shape {shape}; queries x pool is needed")
    seeds = np.random.SeedSequence(seed).generate_state(draws, np.uint64)
    return (random_scores(*shape, int(draw_seed)) for draw_seed in seeds)
