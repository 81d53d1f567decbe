"""What the page says in plain words follows from the figures, and claims no more than they show."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from influcoder_ray.report.contents import QueryPage, ReportContents, Truncation
from influcoder_ray.report.sections.attributions import section as attributions
from influcoder_ray.report.sections.trust import pairs_in_order, readings

MakeContents = Callable[..., ReportContents]


@pytest.mark.parametrize("correlation", [-0.7, 0.0, 0.3, 0.9])
def test_the_share_of_pairs_in_order_is_that_of_normal_pairs(correlation: float) -> None:
    """Prevents a rank agreement from being told as something that it is not."""
    random = np.random.default_rng(3)
    one = random.normal(size=600)
    other = correlation * one + np.sqrt(1 - correlation**2) * random.normal(size=600)
    agree = np.sign(one[:, None] - one) == np.sign(other[:, None] - other)
    counted = (agree.sum() - 600) / (600 * 599)
    rho = np.corrcoef(one.argsort().argsort(), other.argsort().argsort())[0, 1]
    assert pairs_in_order(float(rho)) == pytest.approx(counted, abs=0.01)


def test_the_ends_of_the_scale_are_all_half_and_none() -> None:
    """Prevents 101 of 100 pairs, or an error, at a perfect ranking."""
    assert [pairs_in_order(rho) for rho in (-1, 0, 1, 1.0000001)] == pytest.approx([0, 0.5, 1, 1], abs=1e-6)


def test_the_figures_of_this_run_are_told_beside_their_rivals(make_contents: MakeContents) -> None:
    """Prevents "75 of 100" from sounding good where counting words does as well."""
    first, second, last = readings(make_contents())
    assert "about 77 in the order of exact influence" in first
    assert "encoder before training 55, TF-IDF 52, BM25 53" in first
    assert "5.2 on average" in second
    assert last == "None of the checks below speaks against these rankings."


def test_a_warning_is_not_contradicted(make_contents: MakeContents) -> None:
    """Prevents a page that warns above and reassures below."""
    last = readings(make_contents(truncation=(Truncation("teacher", 10, 9, 64),)))[-1]
    assert "limit what can be believed" in last


def test_an_evaluation_without_figures_is_told_nothing_of(make_contents: MakeContents) -> None:
    """Prevents numbers that nobody measured."""
    assert len(readings(make_contents(evaluation={}))) == 1


def test_a_test_pool_of_ten_or_fewer_says_nothing_of_its_first_ten(make_contents: MakeContents) -> None:
    """Prevents "10.0 of the ten" of a pool of two, whatever the order: no ranking could miss any."""
    evaluation = make_contents().evaluation
    said = {pool: readings(make_contents(evaluation={**evaluation, "pool": pool})) for pool in (10, 11)}
    assert not any("on average" in reading for reading in said[10])
    assert any("5.2 on average" in reading for reading in said[11])


def test_every_query_is_in_the_table_and_those_left_out_are_counted(
    make_contents: MakeContents, plain: Callable[[str], str]
) -> None:
    """Prevents a search that finds nothing from meaning that there is nothing."""
    sound = make_contents()
    further = QueryPage("query-c", "train", "How do I wait?", "", sound.group)
    what, table = attributions(replace(sound, listed=(further,), unlisted=1200)).blocks
    assert "first examples of 3 queries" in what.text
    assert "2 of them stand below" in what.text
    assert "1,200 more queries are not in this page" in what.text
    assert [(row.query, row.anchor) for row in table.rows] == [
        ("How do I sort?", "query-1-1"),
        ("How do I sort?", "query-1-2"),
        ("How do I sort?", "query-1-3"),
        ("How do I read?", "query-2-1"),
        ("How do I read?", "query-2-2"),
        ("How do I wait?", ""),
        ("How do I wait?", ""),
    ]
    nothing = attributions(make_contents(queries=())).blocks
    assert len(nothing) == 1
