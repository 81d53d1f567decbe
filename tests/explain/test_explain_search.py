"""The two ends of a corpus are those of one full sort of it, whatever the shards."""

from pathlib import Path

import numpy as np
import pytest
from embedded_corpus import embedded

from influcoder_ray.attribution.cosine import cosines
from influcoder_ray.explain.search import search
from influcoder_ray.tables.arrays import Steps

WIDTH = 6


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """(40, d), some of them alike, so that scores tie."""
    found = np.random.default_rng(0).normal(size=(40, WIDTH)).astype(np.float16)
    found[5] = found[17] = found[30]
    return found


QUERY = np.random.default_rng(1).normal(size=WIDTH).astype(np.float32)


def restored(vectors: np.ndarray, cuts: list[int]) -> np.ndarray:
    """What is left of vectors whose shards were rounded to int8."""
    parts = np.split(vectors.astype(np.float32), cuts)
    return np.concatenate([Steps.fit(part).restore(Steps.fit(part).round(part)) for part in parts])


@pytest.mark.parametrize("kind", ["float16", "int8"])
@pytest.mark.parametrize("cuts", [[], [7, 8, 31], list(range(1, 40))])
@pytest.mark.parametrize(("most", "least"), [(1, 0), (3, 4), (9, 2), (50, 50)])
def test_both_ends_are_those_of_one_full_sort(
    vectors: np.ndarray, cuts: list[int], most: int, least: int, kind: str, tmp_path: Path
) -> None:
    """Prevents a lost shard, a sign left turned round, a wrong row's source, or equal rows with two ranks."""
    ids = [f"e{(7 * i) % 40:02d}" for i in range(40)]
    settings = embedded(tmp_path, np.split(vectors, cuts), ids=ids, kind=kind)
    if kind == "int8":
        vectors = restored(vectors, cuts)
    scores = cosines(vectors.astype(np.float32), QUERY.astype(np.float16).astype(np.float32)[None])
    downwards = sorted(range(40), key=lambda i: (-scores[i], ids[i]))
    upwards = downwards[::-1]
    found = search(settings, QUERY, most=most, least=least)
    assert found.rows == 40
    for ends, order, ranks in (
        (found.most, downwards[:most], range(1, 41)),
        (found.least[::-1], upwards[:least], range(40, 0, -1)),
    ):
        assert [f.example_id for f in ends] == [ids[i] for i in order]
        assert [f.source for f in ends] == [f"embeddings.parquet:{i}" for i in order]
        assert [f.familiarity for f in ends] == [float(i) for i in order]
        assert [f.score for f in ends] == [float(scores[i]) for i in order]
        assert [f.rank for f in ends] == list(ranks)[: len(order)]
        assert [f.percentile for f in ends] == [100 * (40 - f.rank) / 39 for f in ends]


def test_a_lone_example_is_both_ends(vectors: np.ndarray, tmp_path: Path) -> None:
    """Prevents a division by no other examples."""
    found = search(embedded(tmp_path, [vectors[:1]]), QUERY, most=5, least=5)
    (first,), (last,) = found.most, found.least
    assert first == last
    assert (first.rank, first.percentile) == (1, 100.0)
