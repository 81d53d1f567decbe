"""One real Ray cluster for all tests here, and a run on it that nothing befell."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from ray_nodes import RayNodes, nodes, submit


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayNodes]:
    yield from nodes()


@pytest.fixture
def whole_cluster(cluster: RayNodes) -> RayNodes:
    """The cluster with both its worker nodes, whatever the test before did to them."""
    cluster.restore()
    return cluster


@pytest.fixture(scope="session")
def make_file(
    tmp_path_factory: pytest.TempPathFactory, causal_lm_folder: Path, encoder_folder: Path
) -> Callable[..., Path]:
    """Settings files of one tiny problem that differ in their output folder, or in its size."""
    folder = tmp_path_factory.mktemp("problem")
    generator = np.random.default_rng(0)
    words = ["bread", "flour", "river", "stone", "paris", "seven", "eight", "loss"]
    for name, rows in (("corpus", 60), ("queries", 20), ("large-corpus", 1000)):
        texts = [[" ".join(generator.choice(words, 6)) for _ in range(rows)] for _ in range(2)]
        table = pa.table(
            {"id": [f"{name}{i}" for i in range(rows)], "prompt": texts[0], "response": texts[1]}
        )
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=5)
    columns = {"id": "id", "prompt": "prompt", "response": "response"}

    def make(output: Path, corpus: str = "corpus", pool: int = 40) -> Path:
        fields = {
            "output": str(output),
            "corpus": {"path": str(folder / f"{corpus}.parquet"), "columns": columns},
            "queries": {"path": str(folder / "queries.parquet"), "columns": columns},
            "model": {"path": str(causal_lm_folder), "max_tokens": 32},
            "encoder": {"path": str(encoder_folder), "max_tokens": 48},
            "sketch": {"width": 1024, "rows_per_unit": 1},
            "sample": {"pool": pool},
            "distill": {"epochs": 3},
            "embed": {"rows_per_unit": 5},
            "evaluate": {"fidelity_examples": 4},
            "workers": {stage: {"cpus": 1} for stage in ("sketch", "embed", "evaluate")}
            # Several workers' sums agree to rounding, one worker's to the byte.
            | {"distill": {"cpus": 1, "max": 1}},
        }
        file = output.with_suffix(".yaml")
        file.write_text(yaml.safe_dump(fields))
        return file

    return make


@pytest.fixture(scope="session")
def submitted(
    cluster: RayNodes, make_file: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output folder of a submitted run of all stages that nothing befell."""
    cluster.restore()
    output = tmp_path_factory.mktemp("submitted") / "out"
    done = submit(cluster.dashboard, "jobs/run_pipeline.py", "--config", str(make_file(output)))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return output
