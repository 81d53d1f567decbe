"""The report holds the queries that its settings ask for, and counts those that it has no room for."""

import json
from pathlib import Path
from statistics import median

import pyarrow.parquet as pq
import pytest

from influcoder_ray.config import PipelineSettings
from influcoder_ray.report.render import render_html
from influcoder_ray.report.sections import run
from influcoder_ray.stages.work.page import contents


@pytest.mark.parametrize(
    ("table_rows", "listed"),
    [(40, 5), (39, 4), (0, 0), (10_000, 21)],
)
def test_the_table_takes_whole_queries_beside_those_that_are_shown(
    finished: PipelineSettings, table_rows: int, listed: int
) -> None:
    """Prevents a report of a thousand queries from growing without end, or losing some unsaid."""
    spec = finished.report.model_copy(
        update={"queries": 3, "examples_per_query": 5, "table_rows": table_rows}
    )
    found = contents(finished.model_copy(update={"report": spec}))
    assert (len(found.queries), len(found.listed), found.unlisted) == (3, listed, 21 - listed)
    assert all(len(query.attributions) == 5 for query in (*found.queries, *found.listed))
    ids = [query.query_id for query in (*found.queries, *found.listed)]
    assert len(set(ids)) == len(ids)
    assert all(it.prompt or it.response for it in found.attributions())


def test_the_median_of_best_scores_is_that_of_all_queries(finished: PipelineSettings) -> None:
    """Prevents a figure of all queries' scores that marks the median of those that the page has room for."""
    spec = finished.report.model_copy(update={"queries": 1, "table_rows": 0})
    found = contents(finished.model_copy(update={"report": spec}))
    assert (len(found.queries), found.unlisted) == (1, 23)
    rows = pq.read_table(Path(finished.output) / "attributions").to_pylist()
    best = sorted(row["score"] for row in rows if row["rank"] == 1)
    assert sorted(found.best_scores) == best
    assert f"best scores is {median(best):.3f}." in render_html(found)


def test_rates_are_of_one_worker_and_the_page_says_so(finished: PipelineSettings) -> None:
    """Prevents the seconds of eight workers, added up, from passing as those in which rows went by."""
    found = contents(finished)
    totals = json.loads((Path(finished.output) / "run_summary.json").read_bytes())["stages"]["sketch"]
    (row,) = (row for row in found.stages if row.name == "sketch")
    assert row.tokens_per_second == totals["tokens"] / totals["compute_seconds"]
    assert row.rows_per_second == totals["rows_out"] / totals["compute_seconds"]
    (table, _) = run.section(found).blocks
    assert "those of one worker while it computes" in table.caption
