"""One pass over a shard against each of its parts computed alone."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.attribution import products, reaching, topk
from influcoder_ray.attribution.cosine import cosines
from influcoder_ray.attribution.distribution import ScoreHistogram
from influcoder_ray.attribution.group import group_scores
from influcoder_ray.attribution.products import Asked, look
from influcoder_ray.attribution.scan import Scan
from influcoder_ray.attribution.topk import rank_shard

quick = settings(max_examples=30, deadline=None)


def ids_of(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
    return np.array([f"doc:{row}" for row in rows.tolist()], dtype=object)


def made_up(seed: int, rows: int, width: int, dtype: str) -> npt.NDArray[np.generic]:
    """Vectors of any length, some of them alike and one without a direction."""
    found = np.random.default_rng(seed).normal(size=(rows, width)) * 30
    found[rows // 2 :: 3] = found[rows // 2]
    found[rows // 3] = 0
    return found.astype(dtype)


@given(
    st.integers(0, 1000),
    st.integers(1, 200),
    st.sampled_from(["float16", "float32"]),
    st.integers(1, 3),
    st.integers(1, 30),
    st.lists(st.integers(0, 200), max_size=4),
)
@quick
def test_one_pass_finds_what_each_part_finds_alone_whatever_the_blocks_and_threads(
    seed: int, rows: int, dtype: str, threads: int, k: int, cuts: list[int]
) -> None:
    """Prevents a fast pass whose ranking or group scores differ in a bit, or that counts a pair twice."""
    queries, vectors = made_up(seed, 5, 24, "float16"), made_up(seed + 1, rows, 24, dtype)
    blocks = np.split(vectors, sorted(min(cut, rows) for cut in cuts))
    told: list[int] = []
    found = Scan(queries, k, threads=threads).shard(blocks, ids_of, shard="s", report=told.append)
    alone = rank_shard(queries, vectors, ids_of(np.arange(rows)), k, shard="s", block_rows=7)
    for field in ("scores", "ids", "shards", "rows"):
        assert getattr(found.ranking, field).tolist() == getattr(alone, field).tolist()
    assert found.ranking.examples == rows == sum(told)
    assert found.group.tobytes() == group_scores(queries, vectors).tobytes()
    wide = vectors.astype(np.float32)
    scores = np.stack([cosines(np.repeat(q[None].astype(np.float32), rows, 0), wide) for q in queries])
    truth = ScoreHistogram.of(scores)
    assert found.histogram.total == truth.total
    # A product may lie on the other side of an edge, never farther.
    assert np.abs(np.cumsum(found.histogram.counts - truth.counts)).max() <= np.sum(
        np.abs(scores * 2048 - np.rint(scores * 2048)) < 0.01
    )


@given(
    st.integers(0, 1000),
    st.integers(1, 200),
    st.integers(1, 3),
    st.integers(1, 30),
    st.lists(st.integers(0, 200), max_size=5),
)
@quick
def test_shards_that_are_passed_over_together_are_ranked_as_one(
    seed: int, rows: int, at_once: int, k: int, cuts: list[int]
) -> None:
    """Prevents a row that a bar of another shard has spared wrongly, or one numbered within its shard."""
    queries, vectors = made_up(seed, 3, 16, "float16"), made_up(seed + 1, rows, 16, "float16")
    edges = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    shards = [(start, np.array_split(vectors[start:stop], 2)) for start, stop in pairwise(edges)]
    found = Scan(queries, k).rank_together(shards, ids_of, at_once=at_once)
    alone = rank_shard(queries, vectors, ids_of(np.arange(rows)), k)
    for field in ("scores", "ids", "rows"):
        assert getattr(found, field).tolist() == getattr(alone, field).tolist()
    assert found.examples == rows


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30])
def test_vectors_at_the_ends_of_float32_are_scored_like_others(scale: float) -> None:
    """Prevents an inverse length that overflows from turning directions into NaN."""
    queries = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    vectors = (np.random.default_rng(1).normal(size=(40, 12)) * scale).astype(np.float32)
    found = Scan(queries, 4).shard([vectors], ids_of)
    assert found.histogram.total == 80
    truth = cosines(np.repeat(queries[:1], 40, 0), vectors)
    assert found.ranking.scores[0].tolist() == sorted(truth.tolist(), reverse=True)[:4]


def test_a_row_that_is_not_finite_is_named_by_its_place_in_the_shard() -> None:
    """Prevents NaN from being counted in a bin, or named within its block."""
    vectors = np.ones((20, 3), np.float16)
    vectors[17, 1] = np.inf
    with pytest.raises(ValueError, match="vectors: row 17 holds a value that is not finite"):
        Scan(np.ones((1, 3), np.float16), 2).shard([vectors[:10], vectors[10:]], ids_of)


@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 300), st.integers(1, 20))
@quick
def test_torch_finds_the_products_that_numpy_finds(seed: int, queries: int, rows: int, k: int) -> None:
    """Prevents another device from passing over a pair, or putting one in another's place."""
    # Of so few values many are equal, some to the bar.
    scores = np.random.default_rng(seed).integers(-4, 5, (queries, rows)).astype(np.float32) / 4
    floor = np.random.default_rng(seed + 1).integers(-4, 6, queries).astype(np.float32) / 4
    floor[0] = -np.inf
    held, k = torch.from_numpy(scores), min(k, rows)
    places, found = reaching.reaching_by_torch(held, floor)
    expected_places, expected = reaching.reaching(held, floor)
    assert places.tolist() == expected_places.tolist() == np.flatnonzero(scores >= floor[:, None]).tolist()
    assert found.tobytes() == expected.tobytes() == scores.reshape(-1)[places].tobytes()
    kth = np.sort(scores, axis=1)[:, -k]
    assert (
        reaching.kth_highest_by_torch(held, k).tolist()
        == reaching.kth_highest(held, k).tolist()
        == kth.tolist()
    )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_search_on_another_device_ranks_and_scores_to_the_last_bit_alike(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a ranking that tells on which device it was made; on a machine without GPU torch stands in."""
    if torch.cuda.is_available():
        device = torch.device("cuda")
    else:
        device = torch.device("cpu")
        monkeypatch.setattr(products, "reaching", reaching.reaching_by_torch)
        monkeypatch.setattr(products, "kth_highest", reaching.kth_highest_by_torch)
    queries, vectors = made_up(5, 7, 48, "float16"), made_up(6, 5000, 48, dtype)
    found = Scan(queries, 9, threads=2, device=device).shard(np.array_split(vectors, 3), ids_of, shard="s")
    alone = rank_shard(queries, vectors, ids_of(np.arange(5000)), 9, shard="s")
    for field in ("scores", "ids", "rows"):
        assert getattr(found.ranking, field).tolist() == getattr(alone, field).tolist()
    assert found.group.tobytes() == group_scores(queries, vectors).tobytes()
    assert found.histogram.total == 7 * 5000


def test_products_of_less_than_float32s_precision_are_refused() -> None:
    """Prevents TF32, whose error is a thousand times as large, from passing over the best rows."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(ValueError, match="torch's precision 'high'; a search needs 'highest'"):
            Scan(np.ones((1, 3), np.float16), 2).rank([np.ones((5, 3), np.float16)], ids_of)
    finally:
        torch.set_float32_matmul_precision(before)


def test_vectors_of_another_width_are_refused() -> None:
    """Prevents a product of shapes that fit by chance."""
    with pytest.raises(ValueError, match="vectors have width 4; the queries have 3"):
        Scan(np.ones((1, 3), np.float16), 2).rank([np.ones((5, 4), np.float16)], ids_of)


def test_a_corpus_of_equal_vectors_does_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents an encoder that has collapsed from filling the memory with ties."""
    held = []
    cut = topk.Best._cut

    def watched(best: topk.Best) -> None:
        cut(best)
        held.append(len(best._pairs.query))

    monkeypatch.setattr(topk.Best, "_cut", watched)
    blocks = [np.ones((500, 8), np.float16)] * 20
    found = Scan(np.ones((3, 8), np.float16), 5).rank(blocks, ids_of)
    assert found.ids.tolist() == [sorted(f"doc:{row}" for row in range(10_000))[:5]] * 3
    assert max(held) <= 2 * 3 * 5


def test_a_bar_that_others_have_raised_spares_what_lies_below_it() -> None:
    """Prevents a search that scores every row twice, which is as slow as it is right."""
    generator = np.random.default_rng(4)
    queries, vectors = (generator.normal(size=(rows, 32)).astype(np.float32) for rows in (4, 3000))
    asked, open_bar = Asked(queries), np.full(4, -np.inf, np.float32)
    first = look(asked, vectors, 10, open_bar)
    kth = np.sort(first.score[first.query == 0])[-10]
    raised = look(asked, vectors, 10, np.full(4, kth, np.float32))
    assert len(raised.query) < len(first.query) < 4 * 10 * 8
    assert 10 <= np.count_nonzero(raised.query == 0) <= 12
