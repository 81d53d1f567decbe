"""The embedding's peak memory does not grow with the corpus."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_up import in_this_process
from rich.console import Console
from tiny import build_encoder

from influcoder_ray.config import PipelineSettings, settings_from
from influcoder_ray.encoder.familiarity import Familiarity, familiarity_bytes
from influcoder_ray.encoder.head import SIDES
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.specs import FAMILIARITY, EncoderSpec
from influcoder_ray.stages import distill, embed, sample
from influcoder_ray.stages.display import Display
from influcoder_ray.tables import schemas
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.state import Output

ROWS_PER_UNIT, ROWS_PER_GROUP = 10_000, 5_000
_CHILD = "import sys; sys.path[:0] = sys.argv[1:3]; import test_embed_memory as t; t.child(*sys.argv[3:])"


def settings_of(output: Path) -> PipelineSettings:
    columns = {"text": "text"}
    return settings_from(
        {
            "output": str(output),
            "corpus": {"path": str(output / "corpus.parquet"), "columns": columns},
            "queries": {"path": "queries.parquet", "columns": columns},
            "model": {"path": "-"},
            "encoder": {"path": "-", "max_tokens": 16},
            "embed": {"rows_per_unit": ROWS_PER_UNIT, "query_vectors": "texts"},
        },
        source="test",
    )


def distilled(folder: Path) -> None:
    """A tiny encoder as `distill` leaves one: with a head, and a measure of familiarity."""
    spec = EncoderSpec(path=str(build_encoder(folder / "plain", num_hidden_layers=1)), max_tokens=16)
    encoder = Encoder.load(spec, torch.device("cpu"))
    encoder.head = encoder.new_head(5, 16)
    torch.manual_seed(0)
    encoder.head.weight.copy_(torch.randn_like(encoder.head.weight) * 0.02)
    encoder.save(folder / distill.ENCODER)
    groups = encoder.reading.groups
    traits = np.random.default_rng(0).standard_normal((9, sum(groups[:-1:2]) + groups[-1])).astype(np.float32)
    measures = {side: Familiarity.fit(traits, traits[:4], lengths=groups[-1], neighbours=2) for side in SIDES}
    (folder / distill.ENCODER / FAMILIARITY).write_bytes(familiarity_bytes(measures))


def distilled_run(output: Path, rows: int) -> None:
    """Write what the stages before `embed` would have left, and a corpus of so many rows."""
    output.mkdir()
    distilled(output)
    with pq.ParquetWriter(output / "corpus.parquet", pa.schema([pa.field("text", pa.string())])) as file:
        for first in range(0, rows, ROWS_PER_GROUP):
            texts = [f"number {row}" for row in range(first, min(first + ROWS_PER_GROUP, rows))]
            file.write_table(pa.table({"text": texts}))
    settings = settings_of(output)
    query = {"example_id": "q", "content_hash": f"{0:032}", "split": "train", "prompt": "", "response": "a"}
    queries = pa.Table.from_pylist([query | {"turns": None, "source": "q:0"}], schema=schemas.EXAMPLES)
    for stage, tables in ((sample, {sample.QUERIES: queries}), (distill, {})):
        record = stage.state(settings.root)
        record.begin(Fingerprint({"stage": record.stage}))
        record.commit("all", Output(tables, 0, 0), 0.0)
        record.finish(record.manifests(), {})


def child(output: str) -> None:
    """Embed in this process and print how many rows, and the most memory that it held, in bytes."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        manifests = embed.plan(settings_of(Path(output))).run(Display(Console(quiet=True)))
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(sum(m.rows_out for m in manifests.values()), int(fields["VmHWM"].split()[0]) * 1024)


def peak_bytes(output: Path, rows: int) -> int:
    folders = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, *folders, str(output)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    embedded, peak = map(int, run.stdout.split())
    assert embedded == rows + 1
    return peak


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the kernel keeps no record of peak memory"
)
def test_peak_memory_is_that_of_a_tenth_of_the_corpus(tmp_path: Path) -> None:
    """Prevents an embedding that holds on to rows, which a corpus ten times as large would kill."""
    peaks = []
    for rows in (100_000, 1_000_000):
        distilled_run(tmp_path / f"{rows}", rows)
        peaks.append(peak_bytes(tmp_path / f"{rows}", rows))
    few, many = peaks
    print(f"{few / 2**20:.0f} MiB for 100,000 rows, {many / 2**20:.0f} MiB for 1,000,000")
    assert many <= 1.1 * few
