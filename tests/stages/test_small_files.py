"""Many small files are scanned and embedded in few units, and every row keeps the number of its own file."""

import gzip
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from material import data_table
from rich.console import Console

from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.familiarity import Familiarity, familiarity_bytes
from influcoder_ray.encoder.head import SIDES
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.specs import FAMILIARITY, EncoderSpec
from influcoder_ray.examples import ColumnSpec
from influcoder_ray.stages import sample
from influcoder_ray.stages.cluster import Reservation
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.units_on_ray import WorkPlan, run_units
from influcoder_ray.stages.work.embedding import EmbedWork
from influcoder_ray.stages.work.scan import ScanWork
from influcoder_ray.tables.cells import read_cells
from influcoder_ray.tables.datafiles import DataFile, find_data_files
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.records import read_records
from influcoder_ray.tables.state import Output, StageState
from influcoder_ray.tables.units import Joined, Unit, plan_units

MakeSettings = Callable[..., PipelineSettings]
COLUMNS = ColumnSpec(id="id", prompt="prompt", response="response")
ROWS, FILES = 600, 300
TEXT = pa.schema([pa.field("text", pa.string())])
ACTORS, SECONDS_PER_ROW = 4, 0.001
# Workers cannot import this file: `SleepingWork` travels to them whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def write_file(path: Path, table: pa.Table) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=3)
        return
    text = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def small_files(folder: Path, table: pa.Table, sizes: Sequence[int], suffixes: Sequence[str]) -> Path:
    """The rows of a table in files of these sizes, which take turns with the suffixes; in order of name."""
    folder.mkdir()
    first = 0
    for number, size in enumerate(sizes):
        part = table.slice(first, size)
        write_file(folder / f"{number:04}{suffixes[number % len(suffixes)]}", part)
        first += size
    return folder


def cut(folder: Path, rows_per_unit: int, joined: Joined) -> list[Unit]:
    files = find_data_files(str(folder), setting="test")
    return plan_units(files, rows_per_unit=rows_per_unit, fingerprint="f", table="pool", joined=joined)


def scanned(units: Sequence[Unit], count: int | None) -> list[Output]:
    work = ScanWork(COLUMNS, count, 0, (), "sample", sample.LINE_BLOCKS)
    return [work.process(unit, work.read(unit), lambda rows: None) for unit in units]


def with_blocks(files: Sequence[DataFile], outputs: Sequence[Output]) -> list[DataFile]:
    """Files as the stages after `sample` see them."""
    tables = [output.tables[sample.LINE_BLOCKS] for output in outputs if sample.LINE_BLOCKS in output.tables]
    blocks = [block for table in tables for block in table.to_pylist()]
    rows = {block["file"]: block for block in blocks}
    assert len(rows) == len(blocks)
    return [
        replace(f, row_groups=(rows[f.relative]["rows"],), offsets=(0, rows[f.relative]["end"]))
        if f.relative in rows
        else f
        for f in files
    ]


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=12),
    st.lists(st.sampled_from([".parquet", ".jsonl", ".jsonl.gz"]), min_size=1, max_size=3),
    st.integers(1, 15),
)
@hypothesis_settings(max_examples=40, deadline=None)
def test_every_row_of_many_files_comes_back_once_under_its_own_files_number(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], suffixes: list[str], rows_per_unit: int
) -> None:
    """Prevents rows that are lost or doubled where files meet, and ids that name another file's row."""
    table = data_table(sum(sizes) + 1, 3, "r").slice(1)
    folder = small_files(tmp_path_factory.mktemp("corpus") / "files", table, sizes, suffixes)
    files = find_data_files(str(folder), setting="test")
    names = table["id"].to_pylist()
    sources = [f"{f.relative}:{row}" for f, size in zip(files, sizes, strict=True) for row in range(size)]
    expected = dict(zip(sources, names, strict=True))

    outputs = scanned(cut(folder, rows_per_unit, "all"), None)
    chosen = [row for output in outputs for row in output.tables["pool"].to_pylist()]
    assert {row["source"]: row["example_id"] for row in chosen} == expected
    assert sum(output.rows_in for output in outputs) == len(names)
    counted = with_blocks(files, outputs)
    found, written = [], []
    for unit in plan_units(counted, rows_per_unit=rows_per_unit, fingerprint="f", joined="counted"):
        if unit.rows is None:
            # A file of lines that has none.
            assert not read_cells(unit, ["id"])["id"]
            continue
        numbers = range(unit.first_row, unit.first_row + unit.rows)
        values = [v.decode() if isinstance(v, bytes) else v for v in read_cells(unit, ["id"])["id"]]
        found += list(zip(unit.sources(numbers), values, strict=True))
        records = read_records(unit)
        written += list(zip(unit.sources(records.rows), records.table["id"].to_pylist(), strict=True))
    assert found == written == list(expected.items())


@pytest.fixture(scope="module")
def both_ways(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders with the same rows: in hundreds of small files, and in one whose row groups are as small."""
    folder = tmp_path_factory.mktemp("corpora")
    table = data_table(ROWS, 11, "r")
    small = small_files(folder / "small", table, [ROWS // FILES] * FILES, [".parquet"])
    (folder / "one").mkdir()
    pq.write_table(table, folder / "one/all.parquet", row_group_size=ROWS // FILES)
    return small, folder / "one"


def without_source(outputs: Sequence[Output], table: str) -> list[pa.Table]:
    return [output.tables[table].drop_columns("source") for output in outputs]


def test_many_small_files_are_scanned_like_one_file_with_their_rows(both_ways: tuple[Path, Path]) -> None:
    """Prevents a sample that hangs on how a corpus happens to be stored."""
    small, one = (cut(folder, 100, "all") for folder in both_ways)
    assert len(small) == len(one) == 6
    found, expected = (scanned(units, 9) for units in (small, one))
    assert without_source(found, "pool") == without_source(expected, "pool")
    assert [output.rows_out for output in found] == [100] * 6


@pytest.fixture(scope="module")
def distilled(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder as `distill` leaves one: with a head, and a measure of familiarity."""
    folder = tmp_path_factory.mktemp("distilled") / "encoder"
    encoder = Encoder.load(EncoderSpec(path=str(encoder_folder), max_tokens=48), torch.device("cpu"))
    torch.manual_seed(0)
    encoder.head = encoder.new_head(5, 16)
    encoder.head.weight.copy_(torch.randn_like(encoder.head.weight) * 0.02)
    groups = encoder.reading.groups
    traits = np.random.default_rng(0).standard_normal((9, sum(groups[:-1:2]) + groups[-1])).astype(np.float32)
    encoder.save(folder)
    measures = {side: Familiarity.fit(traits, traits[:4], lengths=groups[-1], neighbours=2) for side in SIDES}
    (folder / FAMILIARITY).write_bytes(familiarity_bytes(measures))
    return folder


def test_many_small_files_are_embedded_like_one_file_with_their_rows(
    both_ways: tuple[Path, Path], distilled: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Prevents thousands of small files from being as many units, and joined rows from changing places."""
    work = EmbedWork(make_settings(tmp_path), str(distilled), "pool", 1)
    found, expected = (
        [work.process(unit, work.read(unit), lambda rows: None) for unit in cut(folder, 100, "counted")]
        for folder in both_ways
    )
    assert len(found) == 6
    assert without_source(found, "pool") == without_source(expected, "pool")
    sources = [source for output in found for source in output.tables["pool"]["source"].to_pylist()]
    assert sources == [f"{number // 2:04}.parquet:{number % 2}" for number in range(ROWS)]


class SleepingWork:
    """Reads units as `embed` does, and sleeps for their rows; says when, and which actor did it."""

    def __init__(self) -> None:
        self._actor = int(ray.get_runtime_context().get_actor_id()[:12], 16)

    def read(self, unit: Unit) -> int:
        return len(read_cells(unit, ["text"])["text"])

    def process(self, unit: Unit, rows: int, report: Callable[[int], None]) -> Output:
        began = time.time()
        time.sleep(rows * SECONDS_PER_ROW)
        counters = {"rows": rows, "actor": self._actor, "began_at": began, "ended_at": time.time()}
        return Output({"rows": pa.table({"rows": [rows]})}, 1, 1, counters=counters)


@pytest.mark.long
@pytest.mark.parametrize(("files", "rows", "letters"), [(5000, 40, 100), (1, 200_000, 10_000)])
def test_units_are_of_like_size_and_workers_busy_whether_files_are_many_or_one(
    local_ray: None, tmp_path: Path, files: int, rows: int, letters: int
) -> None:
    """Prevents workers that open files, or wait for one that has the only file, and do not compute."""
    generator = np.random.default_rng(0)
    for number in range(files):
        # Two gigabytes where it is one file: letters that no codec makes less of.
        with pq.ParquetWriter(tmp_path / f"{number:04}.parquet", TEXT, compression="none") as file:
            for _ in range(0, rows, 500):
                texts = [generator.bytes(letters // 2).hex() for _ in range(min(rows, 500))]
                file.write_table(pa.table({"text": texts}, TEXT))
    found = find_data_files(str(tmp_path), setting="test")
    units = plan_units(found, rows_per_unit=2000, fingerprint="f", joined="counted")
    assert {unit.rows for unit in units} == {2000}
    state = StageState(Place(str(tmp_path / "out")), "embed", ("rows",))
    plan = WorkPlan(state, units, SleepingWork, {})
    display = Display(Console(quiet=True))
    manifests = run_units(plan, Fingerprint({}), Reservation(ACTORS, ACTORS, 0.5, 0, 60), display)
    counters = [manifest.counters for manifest in manifests.values()]
    assert sum(unit["rows"] for unit in counters) == files * rows
    began: dict[float, float] = {}
    for unit in counters:
        began[unit["actor"]] = min(unit["began_at"], began.get(unit["actor"], math.inf))
    assert len(began) == ACTORS
    lasted = sum(max(unit["ended_at"] for unit in counters) - start for start in began.values())
    assert sum(unit["ended_at"] - unit["began_at"] for unit in counters) > 0.9 * lasted
