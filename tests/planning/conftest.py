"""Settings of a tiny project, of which nothing is run."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from planned import COLUMNS, rows

from influcoder_ray.config import PipelineSettings, settings_from

MakeSettings = Callable[..., PipelineSettings]


@pytest.fixture(autouse=True)
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the imports of a worker, which take seconds: a worker starts in one."""
    monkeypatch.setattr("influcoder_ray.planning.calibration.worker_start_seconds", lambda: 1.0)


@pytest.fixture(scope="session")
def fields(
    tmp_path_factory: pytest.TempPathFactory, causal_lm_folder: Path, encoder_folder: Path
) -> dict[str, Any]:
    """Read only."""
    folder = tmp_path_factory.mktemp("planned")
    pq.write_table(rows(200, "c"), folder / "corpus.parquet", row_group_size=20)
    pq.write_table(rows(40, "q"), folder / "queries.parquet")
    return {
        "output": str(folder / "out"),
        "corpus": {"path": str(folder / "corpus.parquet"), "columns": COLUMNS},
        "queries": {"path": str(folder / "queries.parquet"), "columns": COLUMNS},
        "model": {"path": str(causal_lm_folder), "max_tokens": 48, "tokens_per_batch": 256},
        "adapter": {"rank": 4},
        "sketch": {"width": 1024, "rows_per_unit": 16},
        "encoder": {"path": str(encoder_folder), "max_tokens": 64},
        "sample": {"pool": 60},
        "embed": {"rows_per_unit": 40},
    }


@pytest.fixture(scope="session")
def make_plan_settings(fields: dict[str, Any]) -> MakeSettings:
    """The settings with groups of fields replaced: `make_plan_settings(sketch={...})`."""

    def make(**groups: Any) -> PipelineSettings:
        found = copy.deepcopy(fields)
        for name, value in groups.items():
            found[name] = found[name] | value if isinstance(value, dict) and name in found else value
        return settings_from(found, source="test")

    return make
