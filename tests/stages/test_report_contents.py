"""The report holds the queries that its settings ask for, and counts those that it has no room for."""

import pytest

from influcoder_ray.config import PipelineSettings
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
