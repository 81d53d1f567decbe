"""What workers tell Prometheus."""

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.stages import metrics
from influcoder_ray.stages.casualties import Casualties
from influcoder_ray.stages.display import Board
from influcoder_ray.stages.unit_actor import UnitActor
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.rows import read_rows
from influcoder_ray.tables.state import Output, StageState, quarantine_table
from influcoder_ray.tables.units import Unit, plan_units

SECONDS = st.floats(0.001, 1e5)
DASHBOARD = Path(__file__).parents[2] / "jobs/clusters/grafana.json"


@given(st.integers(0, 10**6), st.integers(0, 10**9), SECONDS, SECONDS)
@settings(max_examples=50, deadline=None)
def test_speeds_are_of_the_whole_time_and_idle_is_what_was_not_computed(
    rows: int, tokens: int, computing: float, seconds: float
) -> None:
    """Prevents a speed that leaves out the waiting, and a share outside of 0 to 1 where units overlap."""
    output = Output({}, rows, rows, counters={"tokens": tokens})
    found = metrics.figures(output, computing, seconds)
    assert found[metrics.EXAMPLES_PER_SECOND] == pytest.approx(rows / seconds)
    assert found[metrics.TOKENS_PER_SECOND] == pytest.approx(tokens / seconds)
    assert found[metrics.GPU_IDLE_FRACTION] == pytest.approx(max(0, 1 - computing / seconds))


def halving() -> type:
    """Work that sets every second row aside; made here, as workers cannot import this file."""

    class Halving:
        """Works on a unit of rows: sets every second one aside."""

        def read(self, unit: Unit) -> pa.Table:
            return read_rows(unit)

        def process(self, unit: Unit, rows: pa.Table, report: Callable[[int], None]) -> Output:
            ids = rows["id"].to_pylist()
            aside = quarantine_table("halve", [(name, name, "every second") for name in ids[1::2]])
            kept = rows.take(list(range(0, len(ids), 2)))
            return Output({unit.table: kept}, len(ids), kept.num_rows, aside, {"tokens": 7.0 * len(ids)})

    return Halving


def exported(name: str) -> dict[str, float]:
    """A metric's values by stage, as this machine's Ray gives them to Prometheus."""
    (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        match = re.fullmatch(rf'ray_{name}{{.*stage="(\w+)".*}} (\S+)', line)
        if match:
            found[match[1]] = float(match[2])
    return found


def test_ray_exports_every_metric_of_a_worker_under_its_stages_name(local_ray: None, tmp_path: Path) -> None:
    """Prevents a dashboard that stays empty because a metric was never registered or lost its label."""
    rows = pa.table({"id": [f"r{i}" for i in range(6)]})
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=3)
    files = find_data_files(str(tmp_path / "rows.parquet"), setting="test")
    record = StageState(Place(str(tmp_path / "out")), "halve", ("halves",))
    record.begin(Fingerprint({"stage": "halve"}))
    units = plan_units(files, rows_per_unit=3, fingerprint="0" * 32, table="halves")
    assert len(units) == 2
    board = ray.remote(Board).options(num_cpus=0).remote(None)
    state = (record.root.uri, record.stage, record.tables)
    past = ray.remote(Casualties).options(num_cpus=0).remote()
    actor: Any = ray.remote(UnitActor).options(num_cpus=0).remote(halving(), {}, state, 60.0, board, past)
    batch = pa.table({"unit": [json.dumps(unit.to_dict()) for unit in units]})
    summaries = ray.get(actor.__call__.remote(batch))["summary"].to_pylist()
    assert [json.loads(text)["error"] for text in summaries] == [None, None]
    deadline = time.monotonic() + 60
    while "halve" not in exported(metrics.ROWS_QUARANTINED + "_total"):
        assert time.monotonic() < deadline, "Ray exported no metric within a minute"
        time.sleep(1)
    assert exported(metrics.SHARDS_DONE + "_total")["halve"] == 2
    assert exported(metrics.ROWS_QUARANTINED + "_total")["halve"] == 2
    examples, tokens = (
        exported(name)["halve"] for name in (metrics.EXAMPLES_PER_SECOND, metrics.TOKENS_PER_SECOND)
    )
    assert tokens == pytest.approx(7 * examples)
    assert 0 <= exported(metrics.GPU_IDLE_FRACTION)["halve"] <= 1
    for started in (actor, past, board):
        ray.kill(started)


def test_the_dashboard_asks_for_metrics_that_there_are_and_for_all_of_them() -> None:
    """Prevents panels that stay empty after a metric was renamed."""
    dashboard = json.loads(DASHBOARD.read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_(influcoder_\w+)", target["expr"])
    }
    gauges = {metrics.EXAMPLES_PER_SECOND, metrics.TOKENS_PER_SECOND, metrics.GPU_IDLE_FRACTION}
    counters = {metrics.SHARDS_DONE, metrics.ROWS_QUARANTINED}
    assert asked == gauges | {f"{name}_total" for name in counters}
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len({panel["id"] for panel in dashboard["panels"]}) == len(places)
