"""The page warns exactly when it should."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from influcoder_ray.report.contents import EpochRow, ReportContents, StageRow, Truncation, Unfamiliar
from influcoder_ray.report.warnings import (
    CLEAR_LEAD_IN_STDS,
    MAX_QUARANTINED_SHARE,
    MAX_TRUNCATED_SHARE,
    MAX_UNFAMILIAR_TIMES,
    MIN_SKETCH_RHO,
    MIN_TEST_POOL,
    MIN_TEST_QUERIES,
    warnings_for,
)

MakeContents = Callable[..., ReportContents]
quick = settings(max_examples=50, deadline=None)


def _with(make: MakeContents, change: Callable[[dict[str, Any]], None]) -> list[str]:
    contents = make()
    change(contents.evaluation)
    return warnings_for(contents)


def test_a_sound_run_calls_for_no_warning(make_contents: MakeContents) -> None:
    """Prevents a page that always warns, whose warnings nobody reads."""
    assert warnings_for(make_contents()) == []


@pytest.mark.parametrize(
    ("figure", "name"), [("per_query_rho", "(per query)"), ("aggregated_rho", "(aggregated over queries)")]
)
@given(
    mean=st.floats(-1, 1),
    std=st.floats(0, 0.5),
    seeds=st.none() | st.tuples(st.floats(-1, 1), st.floats(0, 0.5)),
)
@example(mean=0.5, std=0.0, seeds=(0.0, 0.0))
@quick
def test_each_agreement_is_compared_with_the_untrained_encoder_on_the_same_queries(
    make_contents: MakeContents,
    figure: str,
    name: str,
    mean: float,
    std: float,
    seeds: tuple[float, float] | None,
) -> None:
    """Prevents an encoder that training made no better from being sold as better."""

    def change(evaluation: dict[str, Any]) -> None:
        ahead = {"mean": mean, "std": std, "share_ahead": 0.9}
        if seeds is not None:
            ahead["seeds"] = {"mean": seeds[0], "std": seeds[1], "each": []}
        evaluation["leads"]["untrained_encoder"][figure] = ahead

    found = _with(make_contents, change)
    if mean <= 0:
        expected = "no better than the untrained one"
    elif mean < CLEAR_LEAD_IN_STDS * std:
        expected = "not significantly better than the untrained one"
    elif seeds is not None and (seeds[0] <= 0 or seeds[0] < CLEAR_LEAD_IN_STDS * seeds[1]):
        expected = "Another training seed"
    else:
        assert found == []
        return
    assert len(found) == 1
    assert expected in found[0]
    assert name in found[0]


@pytest.mark.parametrize(("lead", "warned"), [(0.0, True), (0.0625, True), (0.125, False), (0.25, False)])
@pytest.mark.parametrize("over", ["queries", "seeds"])
def test_a_lead_of_exactly_two_stds_is_clear_and_no_lead_never_is(
    make_contents: MakeContents, over: str, lead: float, warned: bool
) -> None:
    """Prevents an off-by-one comparison at the threshold (all numbers here are exact in binary)."""

    def change(evaluation: dict[str, Any]) -> None:
        ahead = evaluation["leads"]["untrained_encoder"]["per_query_rho"]
        (ahead if over == "queries" else ahead.setdefault("seeds", {})).update(mean=lead, std=0.0625)

    assert bool(_with(make_contents, change)) is warned


def test_methods_that_spread_widely_but_together_are_still_told_apart(make_contents: MakeContents) -> None:
    """Prevents a clear lead from being doubted because all methods find the same queries hard."""

    def change(evaluation: dict[str, Any]) -> None:
        for method in ("encoder", "untrained_encoder"):
            evaluation["methods"][method]["per_query_rho"]["std"] = 0.5

    assert _with(make_contents, change) == []


def test_a_kept_untrained_encoder_is_said_in_plain_words_and_once(make_contents: MakeContents) -> None:
    """Prevents a report on a trained encoder where there is none, and a page that says it three times."""

    def change(evaluation: dict[str, Any]) -> None:
        evaluation["methods"]["encoder"] = evaluation["methods"]["untrained_encoder"]
        for figures in evaluation["leads"]["untrained_encoder"].values():
            figures.update(mean=0.0, std=0.0, share_ahead=0.0)

    contents = make_contents(epochs=(EpochRow(0, None, 0.2, 0.2, True), EpochRow(1, 0.9, 0.1, 0.2, False)))
    change(contents.evaluation)
    found = warnings_for(contents)
    assert len(found) == 1
    assert "the untrained encoder was kept" in found[0]


@pytest.mark.parametrize(("rival", "name"), [("bm25", "BM25"), ("tfidf", "TF-IDF")])
@pytest.mark.parametrize("figures", [("per_query_rho",), ("per_query_rho", "aggregated_rho")])
def test_counting_words_that_beats_the_encoder_is_a_warning_with_its_figures(
    make_contents: MakeContents, rival: str, name: str, figures: tuple[str, ...]
) -> None:
    """Prevents an encoder from being used where a search for words is better and costs nothing."""

    def change(evaluation: dict[str, Any]) -> None:
        for figure in figures:
            evaluation["methods"][rival][figure]["mean"] = 0.876
            evaluation["leads"][rival][figure].update(mean=-0.0625, std=0.125)

    found = _with(make_contents, change)
    assert len(found) == 1
    assert found[0].startswith(name)
    assert found[0].count("0.876") == len(figures)
    assert "0.741" in found[0]
    assert _with(make_contents, lambda it: it["leads"][rival]["per_query_rho"].update(mean=0.0)) == []


@pytest.mark.parametrize("value", [None, float("nan"), {"mean": None, "std": 0.1}, "high", True])
@pytest.mark.parametrize(
    ("part", "method"),
    [("methods", "encoder"), ("methods", "untrained_encoder"), ("leads", "untrained_encoder")],
)
def test_an_agreement_that_is_missing_or_undefined_is_a_warning(
    make_contents: MakeContents, part: str, method: str, value: object
) -> None:
    """Prevents NaN, which compares false with everything, from passing as a good encoder."""
    found = _with(make_contents, lambda it: it[part][method].update(aggregated_rho=value))
    assert len(found) == 1
    assert "could not be compared" in found[0]


def test_a_lead_without_a_measured_spread_is_a_warning(make_contents: MakeContents) -> None:
    """Prevents one seed's lead from counting as clear because its spread is unknown."""
    found = _with(
        make_contents, lambda it: it["leads"]["untrained_encoder"].update(per_query_rho={"mean": 0.7})
    )
    assert len(found) == 1
    assert "no measured spread" in found[0]


@given(examples=st.integers(0, 3000), data=st.data())
@pytest.mark.parametrize("who", ["teacher", "student"])
@quick
def test_truncation_beyond_a_tenth_is_a_warning_on_either_side(
    make_contents: MakeContents, who: str, examples: int, data: st.DataObject
) -> None:
    """Prevents the encoder's narrower window from going unreported."""
    tenth = examples // 10
    truncated = data.draw(st.integers(0, examples) | st.sampled_from([tenth, min(tenth + 1, examples)]))
    found = warnings_for(make_contents(truncation=(Truncation(who, examples, truncated, 128),)))
    assert bool(found) is (examples > 0 and truncated / examples > MAX_TRUNCATED_SHARE)
    assert all(who in sentence and "128 tokens" in sentence for sentence in found)


@given(rows=st.integers(1, 5000), data=st.data())
@quick
def test_a_stage_that_sets_aside_more_than_a_hundredth_is_a_warning(
    make_contents: MakeContents, rows: int, data: st.DataObject
) -> None:
    """Prevents a small stage's losses from being hidden by a large corpus."""
    lost = data.draw(st.integers(0, rows) | st.sampled_from([rows // 100, min(rows // 100 + 1, rows)]))
    large = StageRow("embed", 1.0, 1, 10_000_000, 10_000_000, 0, None, None)
    small = StageRow("sketch", 1.0, 1, rows, rows - lost, lost, None, None)
    found = warnings_for(make_contents(stages=(large, small), corpus_rows=10_000_000))
    assert bool(found) is (lost / rows > MAX_QUARANTINED_SHARE)
    assert all("sketch" in sentence for sentence in found)


@pytest.mark.parametrize(
    ("audit", "warned"),
    [
        ({"disjoint": True, "shared_contents": 0}, False),
        ({"disjoint": True}, False),
        ({"disjoint": False, "shared_contents": 0}, True),
        ({"disjoint": True, "shared_contents": 1}, True),
        ({"disjoint": False, "shared_contents": 7}, True),
        ({}, True),
    ],
)
def test_splits_that_share_contents_or_were_not_audited_are_a_warning(
    make_contents: MakeContents, audit: dict[str, Any], warned: bool
) -> None:
    """Prevents an agreement measured on training data from being believed."""
    found = _with(make_contents, lambda it: it.update(split_audit=audit))
    assert bool(found) is warned
    assert all("splits" in sentence for sentence in found)


@given(
    rho=st.floats(-1, 1) | st.sampled_from([MIN_SKETCH_RHO, MIN_SKETCH_RHO - 1e-9]) | st.just(float("nan"))
)
@quick
def test_a_sketch_that_blurs_the_truth_is_a_warning(make_contents: MakeContents, rho: float) -> None:
    """Prevents a sketch too narrow for the model from passing as exact influence."""
    found = _with(make_contents, lambda it: it["sketch_fidelity"].update(rho=rho))
    assert bool(found) is not (rho >= MIN_SKETCH_RHO)
    assert all("sketches" in sentence for sentence in found)


def _unfamiliar(**shares: float) -> Unfamiliar:
    """A tenth of a million texts of each kind, of which these shares are unfamiliar, else one in twenty."""
    parts = {name: round(100_000 * shares.get(name, 0.05)) for name in ("rows", "queries", "answers")}
    held_out = {"held_out_pool": 450, "held_out_queries": 450}
    return Unfamiliar(below=5.0, all_queries=100_000, all_answers=100_000, **parts, **held_out)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("rows", "of the corpus is"), ("queries", "of the queries are"), ("answers", "queries' examples are")],
)
@given(share=st.floats(0, 1) | st.sampled_from([0.1, 0.10001]))
@quick
def test_more_than_twice_the_expected_share_of_unfamiliar_texts_is_a_warning(
    make_contents: MakeContents, kind: str, words: str, share: float
) -> None:
    """Prevents a ranking of texts that the encoder knows nothing like from being read as any other."""
    unfamiliar = _unfamiliar(**{kind: share})
    found = warnings_for(make_contents(unfamiliar=unfamiliar, corpus_rows=100_000))
    assert bool(found) is (round(100_000 * share) / 100_000 > MAX_UNFAMILIAR_TIMES * 0.05)
    assert all(words in sentence and "5.0%" in sentence for sentence in found)


@pytest.mark.parametrize(
    ("queries", "of", "held_out", "warned"), [(3, 24, 450, False), (6, 24, 450, True), (6, 24, 12, False)]
)
def test_a_share_that_chance_gives_is_no_warning(
    make_contents: MakeContents, queries: int, of: int, held_out: int, warned: bool
) -> None:
    """Prevents three odd queries, or a limit that twelve texts have placed, from crying wolf."""
    few = replace(_unfamiliar(), queries=queries, all_queries=of, held_out_queries=held_out)
    assert bool(warnings_for(make_contents(unfamiliar=few, corpus_rows=100_000))) is warned


@given(queries=st.integers(0, 2 * MIN_TEST_QUERIES), pool=st.integers(0, 2 * MIN_TEST_POOL))
@quick
def test_a_small_test_is_a_warning(make_contents: MakeContents, queries: int, pool: int) -> None:
    """Prevents figures over a handful of queries or examples from looking precise."""
    found = _with(make_contents, lambda it: it.update(queries=queries, pool=pool))
    assert any("test queries" in sentence for sentence in found) is (queries < MIN_TEST_QUERIES)
    assert any("test pool examples" in sentence for sentence in found) is (pool < MIN_TEST_POOL)
    assert len(found) == (queries < MIN_TEST_QUERIES) + (pool < MIN_TEST_POOL)


def test_an_empty_evaluation_warns_of_every_check_that_was_not_made(make_contents: MakeContents) -> None:
    """Prevents silence about a check from reading as its success."""
    found = warnings_for(replace(make_contents(), evaluation={}))
    for words in (
        "(per query)",
        "(aggregated over queries)",
        "not audited",
        "sketches",
        "test queries",
        "pool",
    ):
        assert any(words in sentence for sentence in found), words
