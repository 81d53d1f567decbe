"""The sample is a function of the contents and the seed, of nothing else."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.stages.sample import refuse_too_few, splits
from influcoder_ray.stages.work.scan import smallest
from influcoder_ray.tables.place import Place


def examples(contents: list[int]) -> list[Example]:
    return [Example(f"id{i}", f"prompt {c}", f"response {c}", f"f:{i}") for i, c in enumerate(contents)]


CONTENTS = st.lists(st.integers(0, 60), min_size=1, max_size=80)


@settings(max_examples=50, deadline=None)
@given(CONTENTS, st.integers(1, 30), st.integers(0, 5), st.randoms(use_true_random=False))
def test_however_the_corpus_is_cut_the_sample_is_the_same(
    contents: list[int], count: int, seed: int, cuts: random.Random
) -> None:
    """A sample that depends on units or workers could be neither resumed nor replayed."""
    whole = examples(contents)
    parts: list[list[Example]] = [[] for _ in range(cuts.randint(1, 5))]
    for example in whole:
        cuts.choice(parts).append(example)
    cuts.shuffle(parts)
    merged = smallest([e for part in parts for e in smallest(part, seed, count)], seed, count)
    assert merged == smallest(whole, seed, count)


@settings(max_examples=50, deadline=None)
@given(CONTENTS, st.integers(0, 5))
def test_each_content_is_taken_once_by_its_first_id(contents: list[int], seed: int) -> None:
    """A content sampled twice would weigh twice, and could fall into two splits."""
    chosen = smallest(examples(contents), seed, None)
    assert len({e.content_hash for e in chosen}) == len(chosen) == len(set(contents))
    for example in chosen:
        twins = [e for e in examples(contents) if e.content_hash == example.content_hash]
        assert example.example_id == min(e.example_id for e in twins)


@settings(max_examples=50, deadline=None)
@given(st.integers(10, 200), st.integers(0, 5))
def test_splits_meet_their_shares_whatever_the_order(count: int, seed: int) -> None:
    """Shares met only on average would leave a small test split empty now and then."""
    given_order = examples(list(range(count)))
    names = splits(given_order, seed, 0.15, 0.25)
    assert names.count("test") == max(2, round(0.25 * count))
    assert names.count("validation") == max(2, round(0.15 * count))
    backwards = splits(given_order[::-1], seed, 0.15, 0.25)[::-1]
    assert backwards == names


def test_another_seed_gives_another_sample() -> None:
    """A seed without effect would make every repetition the same draw."""
    whole = examples(list(range(100)))
    assert smallest(whole, 0, 20) != smallest(whole, 1, 20)


def test_too_few_rows_are_refused_with_the_place_that_says_why_others_are_unusable() -> None:
    """Of a million rows whose ids are fractions none is usable: "give at least 10" would explain nothing."""
    quarantine = Place("/run/quarantine")
    refuse_too_few("corpus.path", 10, 5, 0, quarantine)
    with pytest.raises(UserError, match=r"at least 10; /run/quarantine says why 1,200 rows cannot be used$"):
        refuse_too_few("corpus.path", 0, 1200, 0, quarantine)
    with pytest.raises(UserError, match=r"only 9 different usable rows, .*; give at least 10$"):
        refuse_too_few("corpus.path", 9, 0, 0, quarantine)
    with pytest.raises(UserError, match=r"at least 10; 150 more have the content of a query$"):
        refuse_too_few("corpus.path", 0, 0, 150, quarantine)
