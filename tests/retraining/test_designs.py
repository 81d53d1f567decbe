"""Which examples each fine-tune is made on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from influcoder_ray.retraining.designs import RANDOM, Design, all_designs, members, merit, part_size
from influcoder_ray.retraining.specs import ValidateSpec

METHODS = ("encoder", "exact")


def spec_of(**fields: float) -> ValidateSpec:
    return ValidateSpec.model_validate({"seeds": 2, "subsets": 4, "share": 0.2, "alpha": 0.5} | fields)


def pool_of(count: int, seed: int = 0) -> tuple[list[str], dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [f"content {i}" for i in range(count)], {m: generator.normal(size=count) for m in METHODS}


@given(
    count=st.integers(2, 40), share=st.floats(0.01, 0.5), alpha=st.floats(0.01, 0.99), seed=st.integers(0, 99)
)
def test_parts_have_their_sizes_and_what_is_removed_is_what_is_selected(
    count: int, share: float, alpha: float, seed: int
) -> None:
    """Prevents random parts of another size than what they are compared with, and parts of nothing or all."""
    spec, (contents, merits) = spec_of(share=share, alpha=alpha), pool_of(count, seed)
    for design in all_designs(spec, METHODS, 7):
        rows = members(design, spec, contents, merits, seed)
        assert rows == sorted(set(rows))
        sizes = {
            "before": 0,
            "whole": count,
            "select": part_size(share, count),
            "remove": count - part_size(share, count),
            "subset": part_size(alpha, count),
        }
        assert len(rows) == sizes[design.kind]
        assert design.kind == "before" or rows
    for method in METHODS:
        top, rest = (members(Design(k, method), spec, contents, merits, seed) for k in ("select", "remove"))
        assert sorted(top + rest) == list(range(count))
        assert merits[method][top].min() >= merits[method][rest].max()


def test_more_seeds_and_subsets_leave_those_that_were_there_as_they_were() -> None:
    """Prevents finished fine-tunes from being thrown away, or mixed with others of the same name."""
    few, many = spec_of(seeds=1, subsets=3), spec_of(seeds=3, subsets=9, subset_seeds=2)
    before, after = all_designs(few, METHODS, 5), all_designs(many, METHODS, 5)
    assert set(before) < set(after)
    assert len({design.name for design in after}) == len(after) == 1 + 3 + 2 * 3 * 3 + 9 * 2
    contents, merits = pool_of(30)
    for design in before:
        assert members(design, few, contents, merits, 5) == members(design, many, contents, merits, 5)
    # The first seed alone is trained on where there are no others of its kind.
    assert {d.seed for d in before if d.kind != "before"} == {5}


def test_random_parts_differ_by_draw_and_seed_and_not_by_the_pools_order() -> None:
    """Prevents seeds that all see the same random examples, and parts that depend on who wrote the pool."""
    spec, (contents, merits) = spec_of(share=0.5), pool_of(40)
    designs = [Design(k, RANDOM, draw, draw) for k in ("select", "remove") for draw in range(3)]
    designs += [Design("subset", draw=draw) for draw in range(3)]
    found = [tuple(members(design, spec, contents, merits, 1)) for design in designs]
    assert len(set(found)) == len(found)
    assert members(designs[0], spec, contents, merits, 2) != list(found[0])
    turned = contents[::-1]
    for design, rows in zip(designs, found, strict=True):
        again = members(design, spec, turned, {}, 1)
        assert {turned[row] for row in again} == {contents[row] for row in rows}


def test_an_examples_merit_is_its_mean_score_and_equal_ones_go_by_content() -> None:
    """Prevents a choice by one query's scores, or one that differs between machines."""
    scores = np.array([[1.0, 0.0, 0.5], [0.0, 3.0, 1.0]])
    np.testing.assert_allclose(merit(scores), [0.5, 1.5, 0.75])
    chosen = members(Design("select", "exact"), spec_of(), ["b", "a", "c"], {"exact": np.zeros(3)}, 0)
    assert chosen == [1]


@pytest.mark.parametrize(
    "fields", [{"subsets": 1}, {"subsets": 2}, {"alpha": 1.0}, {"share": 0.6}, {"steps": 0}, {"seeds": -1}]
)
def test_settings_that_make_no_experiment_are_refused(fields: dict[str, float]) -> None:
    """Prevents fine-tunes for hours that can show nothing."""
    with pytest.raises(ValidationError):
        spec_of(**fields)
