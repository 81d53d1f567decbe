"""The search's peak memory does not grow with the corpus."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_up import in_this_process
from rich.console import Console

from influcoder_ray.config import PipelineSettings, settings_from
from influcoder_ray.stages import attribute, embed
from influcoder_ray.stages.display import Display
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import vector_column
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.state import Output

WIDTH, QUERIES = 64, 50
_CHILD = "import sys; sys.path[:0] = sys.argv[1:3]; import test_search_memory as t; t.child(*sys.argv[3:])"


def settings_of(output: Path) -> PipelineSettings:
    columns = {"text": "text"}
    return settings_from(
        {
            "output": str(output),
            "corpus": {"path": "corpus.parquet", "columns": columns},
            "queries": {"path": "queries.parquet", "columns": columns},
            "model": {"path": "-"},
            "encoder": {"path": "-"},
            "attribute": {"top_k": 100},
        },
        source="test",
    )


def embedded(output: Path, rows: int, rows_per_unit: int) -> None:
    """Write what the embed stage would have left of a corpus of so many rows."""
    generator = np.random.default_rng(0)

    def table(first: int, count: int) -> pa.Table:
        column, _ = vector_column(generator.normal(size=(count, WIDTH)), "float16")
        cells = {
            "example_id": [f"document-{row:09}" for row in range(first, first + count)],
            "source": [f"corpus.parquet:{row}" for row in range(first, first + count)],
            "embedding": column,
            "familiarity": np.full(count, 50, np.float32),
        }
        return pa.table(cells, schema=schemas.embeddings(WIDTH))

    record = embed.state(settings_of(output).root)
    record.begin(Fingerprint({"stage": "embed"}))
    record.commit("queries", Output({embed.QUERIES: table(0, QUERIES)}, QUERIES, QUERIES), 0.0)
    for first in range(0, rows, rows_per_unit):
        count = min(rows_per_unit, rows - first)
        record.commit(f"{first:09}", Output({embed.CORPUS: table(first, count)}, count, count), 0.0)
    record.finish(record.manifests(), {})


def child(output: str) -> None:
    """Attribute in this process and print the most memory that it held, in bytes."""
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        attribute.plan(settings_of(Path(output))).run(Display(Console(quiet=True)))
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(fields["VmHWM"].split()[0]) * 1024)


def peak_bytes(output: Path) -> int:
    folders = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, *folders, str(output)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout.split()[-1])


@pytest.mark.long
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the kernel keeps no record of peak memory"
)
@pytest.mark.parametrize("rows_per_unit", [2048, 1_000_000])
def test_peak_memory_is_that_of_a_tenth_of_the_corpus(tmp_path: Path, rows_per_unit: int) -> None:
    """Prevents a search, or a merge of its units' rankings, that a corpus ten times as large would kill."""
    for rows in (100_000, 1_000_000):
        embedded(tmp_path / f"{rows}", rows, rows_per_unit)
    few, many = (peak_bytes(tmp_path / f"{rows}") for rows in (100_000, 1_000_000))
    print(f"{few / 2**20:.0f} MiB for 100,000 rows, {many / 2**20:.0f} MiB for 1,000,000")
    assert many <= 1.1 * few
