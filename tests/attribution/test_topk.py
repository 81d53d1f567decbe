"""The top k of a corpus in shards against one full sort of it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.attribution.cosine import cosines
from influcoder_ray.attribution.topk import Ranking, kth_best, merge, merge_each, rank_shard

quick = settings(max_examples=50, deadline=None)


@dataclass
class Case:
    queries: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float16] | npt.NDArray[np.float32]
    ids: list[str]
    k: int

    def truth(self) -> tuple[list[list[float]], list[list[str]]]:
        """One full sort by (-score, id), each score computed by itself."""
        wide = self.vectors.astype(np.float32)
        scores, ids = [], []
        for query in self.queries.astype(np.float32):
            row = [float(cosines(query[None], vector[None])[0]) for vector in wide]
            order = sorted(range(len(row)), key=lambda i, of=row: (-of[i], self.ids[i]))  # type: ignore[misc]
            scores.append([row[i] for i in order[: self.k]])
            ids.append([self.ids[i] for i in order[: self.k]])
        return scores, ids

    def shard(self, rows: slice, name: str, block_rows: int) -> Ranking:
        return rank_shard(
            self.queries, self.vectors[rows], self.ids[rows], self.k, shard=name, block_rows=block_rows
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Corpora of three kinds: exact ties everywhere, near-ties in the last bits, and plain noise."""
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    queries, examples, width = draw(st.integers(1, 4)), draw(st.integers(1, 60)), draw(st.integers(1, 9))
    kind = draw(st.sampled_from(["ties", "near ties", "noise"]))
    if kind == "ties":
        vectors = generator.integers(-1, 2, size=(examples, width)).astype(np.float32)
    elif kind == "near ties":
        steps = generator.integers(-2, 3, size=(examples, width)) * 2.0**-24
        vectors = (generator.normal(size=(1, width)) * (1 + steps)).astype(np.float32)
    else:
        vectors = generator.normal(size=(examples, width)).astype(np.float32)
    return Case(
        generator.normal(size=(queries, width)).astype(np.float32),
        vectors.astype(draw(st.sampled_from([np.float16, np.float32]))),
        [f"doc:{number}" for number in generator.permutation(examples)],
        draw(st.integers(1, 70)),
    )


@given(cases(), st.data())
@quick
def test_top_k_is_that_of_a_full_sort_whatever_the_shards_their_order_and_the_blocks(
    case: Case, data: st.DataObject
) -> None:
    """Prevents an attribution that changes with the number of workers, or ties cut at random."""
    n = len(case.ids)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=5)))
    shards = [
        case.shard(slice(start, end), f"shard {start}", data.draw(st.integers(1, 80)))
        for start, end in zip([0, *cuts], [*cuts, n], strict=True)
    ]
    merged = merge(data.draw(st.permutations(shards)), case.k)
    scores, ids = case.truth()
    assert merged.scores.tolist() == scores
    assert merged.ids.tolist() == ids
    assert merged.examples == n
    # The payload leads back to the row that was ranked.
    starts = {f"shard {start}": start for start in [0, *cuts]}
    for ranked_ids, names, rows in zip(merged.ids, merged.shards, merged.rows, strict=True):
        assert [case.ids[starts[s] + r] for s, r in zip(names, rows, strict=True)] == list(ranked_ids)


@given(cases(), st.data())
@quick
def test_merging_in_any_tree_gives_one_ranking(case: Case, data: st.DataObject) -> None:
    """Prevents a tree of merges from ending elsewhere than one merge of everything."""
    n = len(case.ids)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2)))
    a, b, c = (
        case.shard(slice(start, end), f"{place}", 16)
        for place, (start, end) in enumerate(zip([0, *cuts], [*cuts, n], strict=True))
    )
    flat = merge([a, b, c], case.k)
    for tree in (
        merge([merge([a, b], case.k), c], case.k),
        merge([a, merge([c, b], case.k)], case.k),
        merge([merge([merge([b], case.k), c], case.k), a], case.k),
    ):
        for field in ("scores", "ids", "shards", "rows"):
            assert getattr(tree, field).tolist() == getattr(flat, field).tolist()
        assert tree.examples == flat.examples


def test_ties_at_the_last_place_go_to_the_smallest_ids_of_the_whole_corpus() -> None:
    """Prevents a partition from keeping whichever of many equal rows it met."""
    ids = [f"{number:03d}" for number in range(500)]
    shuffled = np.random.default_rng(0).permutation(ids).tolist()
    ranking = rank_shard(
        np.ones((1, 3), np.float32), np.ones((500, 3), np.float16), shuffled, 7, block_rows=64
    )
    assert ranking.ids.tolist() == [ids[:7]]


@pytest.mark.parametrize("block_rows", [1, 33, 400])
def test_scores_closer_than_the_product_can_tell_apart_are_ranked_by_their_own_bits(block_rows: int) -> None:
    """Prevents the rounding of a float32 matrix product from choosing who is among the top k."""
    generator = np.random.default_rng(6)
    steps = generator.integers(-2, 3, size=(400, 257)) * 2.0**-24
    vectors = (generator.normal(size=(1, 257)) * (1 + steps)).astype(np.float32)
    queries = generator.normal(size=(5, 257)).astype(np.float32)
    case = Case(queries, vectors, [f"{number:03d}" for number in range(400)], 9)
    ranking = case.shard(slice(None), "", block_rows)
    assert (ranking.scores.tolist(), ranking.ids.tolist()) == case.truth()


def test_ids_are_ordered_as_strings_by_code_point() -> None:
    """Prevents numeric or locale order of ids, which other tools would not reproduce."""
    ids = ["b", "é", "10", "9", "B", "a\0", "a"]
    ranking = rank_shard(np.ones((1, 2), np.float32), np.ones((7, 2), np.float32), ids, 7)
    assert ranking.ids.tolist() == [sorted(ids)]


def test_an_id_that_occurs_twice_has_one_order_by_shard_and_row() -> None:
    """Prevents the payload from depending on the order of the shards."""
    queries, vectors = np.ones((1, 2), np.float32), np.ones((2, 2), np.float32)
    left, right = (rank_shard(queries, vectors, ["x", "x"], 3, shard=name) for name in "ab")
    for merged in (merge([left, right], 3), merge([right, left], 3)):
        assert merged.shards.tolist() == [["a", "a", "b"]]
        assert merged.rows.tolist() == [[0, 1, 0]]


def test_a_corpus_sorted_against_the_search_is_ranked_the_same() -> None:
    """Prevents a running threshold that is right only where the best come first."""
    generator = np.random.default_rng(5)
    vectors = generator.normal(size=(3000, 16)).astype(np.float16)
    queries = generator.normal(size=(3, 16)).astype(np.float16)
    ids = [f"{number:04d}" for number in range(3000)]
    scores = cosines(np.repeat(queries[:1], 3000, axis=0).astype(np.float32), vectors.astype(np.float32))
    rising = np.argsort(scores)
    plain = rank_shard(queries, vectors, ids, 20, block_rows=100)
    against = rank_shard(queries, vectors[rising], [ids[i] for i in rising], 20, block_rows=100)
    assert plain.ids.tolist() == against.ids.tolist()
    assert plain.scores.tobytes() == against.scores.tobytes()


def test_a_shard_without_rows_adds_nothing_and_a_corpus_without_rows_ranks_nothing() -> None:
    """Prevents an empty unit from failing a whole attribution."""
    queries = np.ones((2, 3), np.float32)
    empty = rank_shard(queries, np.empty((0, 3), np.float16), [], 4)
    assert empty.scores.shape == (2, 0)
    full = rank_shard(queries, np.ones((5, 3), np.float16), list("edcba"), 4)
    assert merge([empty, full], 4).ids.tolist() == [list("abcd")] * 2
    assert merge([empty, empty], 4).examples == 0


def test_a_ranking_may_be_cut_further_but_never_stretched() -> None:
    """Prevents a top 5 of shards that kept 3 each, which would miss examples without a sign."""
    vectors = np.eye(6, dtype=np.float32)
    ranking = rank_shard(np.ones((1, 6), np.float32), vectors, list("abcdef"), 3)
    assert merge([ranking], 2).ids.tolist() == [["a", "b"]]
    with pytest.raises(ValueError, match="keeps 3 of its 6 examples; the top 5 needs"):
        merge([ranking], 5)


def test_inputs_that_do_not_fit_are_refused() -> None:
    """Prevents ids that slide against their vectors, and a merge of other queries' rankings."""
    queries, vectors = np.ones((2, 3), np.float32), np.ones((4, 3), np.float16)
    with pytest.raises(ValueError, match="3 example ids for 4 vectors"):
        rank_shard(queries, vectors, ["a", "b", "c"], 1)
    with pytest.raises(ValueError, match="k is 0"):
        rank_shard(queries, vectors, list("abcd"), 0)
    with pytest.raises(ValueError, match="block_rows is 0"):
        rank_shard(queries, vectors, list("abcd"), 1, block_rows=0)
    with pytest.raises(ValueError, match="query vectors: row 1"):
        rank_shard(np.array([[1, 2, 3], [np.nan, 0, 0]], np.float32), vectors, list("abcd"), 1)
    one, two = (rank_shard(queries[:q], vectors, list("abcd"), 1) for q in (1, 2))
    with pytest.raises(ValueError, match=r"rankings of \[1, 2\] queries"):
        merge([one, two], 1)
    with pytest.raises(ValueError, match="no rankings"):
        merge([], 1)


@given(cases(), st.integers(1, 200))
@quick
def test_rankings_that_are_merged_a_few_at_a_time_end_in_the_same_one(case: Case, places: int) -> None:
    """Prevents a merge whose memory is bounded, and whose result hangs on the bound."""
    shards = [case.shard(slice(start, start + 7), f"{start:02}", 16) for start in range(0, len(case.ids), 7)]
    whole, found = merge(shards, case.k), merge_each(iter(shards), case.k, places=places)
    for field in ("scores", "ids", "shards", "rows"):
        assert getattr(found, field).tolist() == getattr(whole, field).tolist()
    assert found.examples == whole.examples


@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 9))
@quick
def test_the_kth_best_is_that_of_a_sort_for_scores_of_either_sign(seed: int, pairs: int, k: int) -> None:
    """Prevents negative scores, whose bits fall as they rise, from setting a bar that is too high."""
    generator = np.random.default_rng(seed)
    query = generator.integers(0, 3, size=pairs)
    score = generator.choice(np.array([-1, -0.5, -1e-30, 0, 1e-30, 0.25, 1], np.float32), size=pairs)
    for place, found in enumerate(kth_best(query, score, 4, k)):
        of_query = np.sort(score[query == place])[::-1]
        assert found == (of_query[k - 1] if len(of_query) >= k else -np.inf)
