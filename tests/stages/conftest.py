"""A tiny project of models and data, settings for it, and one finished run that tests only read."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from material import data_table
from rich.console import Console

from influcoder_ray import pipeline
from influcoder_ray.config import PipelineSettings, settings_from

CORPUS_ROWS, QUERY_ROWS = 120, 24

Fields = dict[str, Any]
MakeSettings = Callable[..., PipelineSettings]


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, causal_lm_folder: Path, encoder_folder: Path) -> Fields:
    """Settings fields of a tiny project without an output folder; its files are read only."""
    folder = tmp_path_factory.mktemp("project")
    pq.write_table(data_table(CORPUS_ROWS, 1, "c"), folder / "corpus.parquet", row_group_size=20)
    pq.write_table(data_table(QUERY_ROWS, 7, "q"), folder / "queries.parquet")
    columns = {"id": "id", "prompt": "prompt", "response": "response"}
    return {
        "corpus": {"path": str(folder / "corpus.parquet"), "columns": columns},
        "queries": {"path": str(folder / "queries.parquet"), "columns": columns},
        "model": {"path": str(causal_lm_folder), "max_tokens": 48, "tokens_per_batch": 256},
        "adapter": {"rank": 4},
        "sketch": {"width": 1024, "rows_per_unit": 16},
        "encoder": {"path": str(encoder_folder), "max_tokens": 64},
        "sample": {"pool": 60},
        "distill": {"epochs": 2, "learning_rate": 1e-3},
        "embed": {"rows_per_unit": 40},
        "attribute": {"top_k": 7},
        "evaluate": {"fidelity_examples": 6, "resamples": 20},
        "workers": {stage: {"cpus": 1, "max": 1} for stage in ("sketch", "distill", "embed", "evaluate")},
    }


@pytest.fixture(scope="session")
def make_settings(project: Fields) -> MakeSettings:
    """Settings of the tiny project with groups of fields replaced: `make_settings(output, sketch={...})`."""

    def make(output: Path | str, **groups: Any) -> PipelineSettings:
        fields = copy.deepcopy(project) | {"output": str(output)}
        for name, value in groups.items():
            fields[name] = fields[name] | value if isinstance(value, dict) and name in fields else value
        return settings_from(fields, source="test")

    return make


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of three logical CPUs in this process, so that three workers can run at once."""
    from influcoder_ray.stages.cluster import quiet_ray_data

    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 << 20,
        logging_level="ERROR",
    )
    quiet_ray_data()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def finished(
    make_settings: MakeSettings, local_ray: None, tmp_path_factory: pytest.TempPathFactory
) -> PipelineSettings:
    """The settings of one finished run of all stages; its output is read only."""
    settings = make_settings(tmp_path_factory.mktemp("finished"))
    pipeline.run(settings, console=Console(quiet=True))
    return settings
