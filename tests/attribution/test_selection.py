"""What is taken of a corpus: the best so many from counts, in turns, within budgets."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.attribution.selection import (
    BINS,
    Budget,
    Copies,
    bar_of,
    best_first,
    lowest_in_bin,
    rows_of_share,
    score_bins,
    take_in_turns,
)

FLOATS = st.floats(-2, 2, width=32)


@given(st.integers(1, 99), st.integers(1, 10**9))
def test_a_share_in_per_cent_is_as_many_rows_as_on_paper(percent: int, rows: int) -> None:
    """Prevents 29% of a hundred rows from being 28, since .29 has no exact binary form."""
    assert rows_of_share(percent / 100, rows) == max(1, percent * rows // 100)


def test_the_least_share_is_a_row() -> None:
    """Prevents a selection of nothing."""
    assert rows_of_share(1e-9, 100) == 1
    assert rows_of_share(0.29, 100) == 29


@given(st.lists(FLOATS, min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_bins_keep_the_order_and_their_lowest_score_lies_in_them(values: list[float]) -> None:
    """Prevents a bar that cuts off a row which is better than one that is kept, negative scores above all."""
    scores = np.array(values, np.float32)
    bins = score_bins(scores)
    order = np.argsort(scores, kind="stable")
    assert (np.diff(bins[order]) >= 0).all()
    for score, place in zip(scores.tolist(), bins.tolist(), strict=True):
        lowest = lowest_in_bin(place)
        assert lowest <= score
        assert score_bins(np.array([lowest], np.float32))[0] == place


@given(st.lists(FLOATS, min_size=1, max_size=80), st.integers(1, 90), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_the_best_n_stand_above_the_bar_whatever_the_shards(
    values: list[float], wanted: int, shards: int
) -> None:
    """Prevents a corpus's best rows from being lost where its shards' counts are added."""
    scores = np.array(values, np.float32)
    counts = sum(
        (np.bincount(score_bins(part), minlength=BINS) for part in np.array_split(scores, shards)),
        start=np.zeros(BINS, np.int64),
    )
    bar = bar_of(counts, wanted)
    ids = [f"r{i:03}" for i in range(len(scores))]
    everything = pa.table({"score": scores, "example_id": ids})
    above = pa.table({"score": scores[scores >= bar], "example_id": np.array(ids)[scores >= bar]})
    assert above.num_rows >= min(wanted, len(scores))
    best = sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))[:wanted]
    assert best_first(above)["example_id"].to_pylist()[:wanted] == [ids[i] for i in best]
    assert best_first(everything)["example_id"].to_pylist()[:wanted] == [ids[i] for i in best]
    if np.isfinite(bar):
        inside = score_bins(scores) > score_bins(np.array([bar], np.float32))[0]
        assert inside.sum() < wanted


def in_turns_one_by_one(rankings: list[list[int]], limit: int, content: list[int], copies: int) -> list[int]:
    """The definition, said once more: whoever's turn it is takes its best row that may still be taken."""
    taken: list[int] = []
    turn = idle = 0
    while len(taken) < limit and idle < len(rankings):
        left = [
            row
            for row in rankings[turn % len(rankings)]
            if row not in taken
            and (not copies or sum(content[other] == content[row] for other in taken) < copies)
        ]
        idle = 0 if left else idle + 1
        taken += left[:1]
        turn += 1
    return taken


@given(
    st.integers(1, 4).flatmap(lambda g: st.lists(st.permutations(range(9)), min_size=g, max_size=g)),
    st.integers(1, 12),
    st.lists(st.integers(0, 3), min_size=9, max_size=9),
    st.integers(0, 2),
    st.integers(1, 9),
)
@settings(max_examples=200, deadline=None)
def test_rows_are_taken_as_turns_are_defined_and_never_from_what_is_not_known(
    rankings: list[list[int]], limit: int, content: list[int], copies: int, depth: int
) -> None:
    """Prevents a query from losing its turn, a content from standing more often than allowed, and a
    selection that would have come out otherwise had more been known."""
    expected = in_turns_one_by_one(rankings, limit, content, copies)
    limits = Copies(copies, [content])
    taken = take_in_turns(rankings, Budget(rows=limit), limits.admit, limits.take, whole=True)
    assert taken.rows == expected
    assert taken.ended_by == ("budget" if len(expected) == limit else "rows")
    assert all(row in rankings[origin] for row, origin in zip(taken.rows, taken.rankings, strict=True))
    limits = Copies(copies, [content])
    cut = [ranking[:depth] for ranking in rankings]
    some = take_in_turns(cut, Budget(rows=limit), limits.admit, limits.take, whole=False)
    assert some.rows == expected[: len(some.rows)]
    assert some.ended_by != "rows"
    if some.ended_by == "budget":
        assert some.rows == expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_a_token_budget_is_never_exceeded_and_ends_at_the_first_row_that_does_not_fit(
    tokens: list[int], budget: int
) -> None:
    """Prevents a preference for short rows, and a training run that is longer than was asked for."""
    spent = Budget(tokens=budget, tokens_of=tokens)
    taken = take_in_turns([range(len(tokens))], spent, lambda row: True, lambda row: None, whole=True)
    sums = np.cumsum(tokens)
    assert taken.rows == list(range(int((sums <= budget).sum())))
    assert spent.taken_tokens == sum(tokens[row] for row in taken.rows) <= budget
    assert taken.ended_by == ("rows" if sums[-1] < budget else "budget")
