"""A large file of lines is shared among workers, and stays one file to whoever asks where a row stands."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pytest
from material import sentences

from influcoder_ray.config import PipelineSettings
from influcoder_ray.examples.columns import ColumnSpec, examples_from_cells
from influcoder_ray.stages import sample
from influcoder_ray.stages.corpus import corpus_files
from influcoder_ray.stages.work.scan import ScanWork
from influcoder_ray.tables import json_lines
from influcoder_ray.tables.cells import read_cells
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.lookup import find_rows
from influcoder_ray.tables.state import Output
from influcoder_ray.tables.units import Unit, plan_units

ROWS, COLUMNS = 60, ColumnSpec(prompt="prompt", response="response")
MakeSettings = Callable[..., PipelineSettings]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two files of lines, one of them compressed, with a blank line and one that is no JSON."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = sentences(2 * ROWS, 5)
    lines = [json.dumps({"prompt": texts[i], "response": texts[ROWS + i]}) for i in range(ROWS)]
    lines[7], lines[21] = "", "{no json"
    (folder / "a.jsonl").write_text("\n".join(lines[:40]) + "\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[40:]).encode()))
    return folder


def scanned(corpus: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> list[Output]:
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", block_bytes)
    work = ScanWork(COLUMNS, 9, 0, (), "sample", sample.LINE_BLOCKS)
    files = find_data_files(str(corpus), setting="test")
    units = plan_units(files, rows_per_unit=1, fingerprint="", table="pool")
    return [work.process(unit, work.read(unit), lambda rows: None) for unit in units]


def test_a_scan_chooses_the_same_however_many_lines_it_holds_at_a_time(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of gigabytes is scanned in a few megabytes of memory: that must not show in the sample."""
    for whole, few in zip(
        scanned(corpus, 1 << 20, monkeypatch), scanned(corpus, 300, monkeypatch), strict=True
    ):
        assert whole.tables["pool"].equals(few.tables["pool"])
        assert whole.quarantine == few.quarantine
        assert (whole.rows_in, whole.rows_out) == (few.rows_in, few.rows_out)
        assert len(whole.tables[sample.LINE_BLOCKS]) == 1
        assert len(few.tables[sample.LINE_BLOCKS]) > 3


@pytest.fixture
def in_blocks(
    corpus: Path, make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> PipelineSettings:
    """Settings whose sample has found small blocks."""
    columns = COLUMNS.model_dump(exclude_none=True)
    settings = make_settings(tmp_path / "run", corpus={"path": str(corpus), "columns": columns})
    files = find_data_files(str(corpus), setting="test")
    record = sample.state(settings.root)
    record.begin(Fingerprint({"stage": "sample", "corpus": sample.data_fields(settings.corpus, files)}))
    for number, output in enumerate(scanned(corpus, 500, monkeypatch)):
        table = {sample.LINE_BLOCKS: output.tables[sample.LINE_BLOCKS]}
        record.commit(f"unit{number}", Output(table, 0, 0), 0.0)
    return settings


def examples_of(unit: Unit) -> tuple[list[str], list[str]]:
    cells = read_cells(unit, COLUMNS.names)
    good, bad = examples_from_cells(cells, COLUMNS, relative=unit.piece.relative)
    return [f"{e.source} {e.text}" for e in good], [f"{e.source} {e.reason}" for e in bad]


def test_units_of_lines_hold_every_row_once_under_its_own_number(in_blocks: PipelineSettings) -> None:
    """Prevents one worker from having a whole file of lines, and ids that name another row."""
    files = corpus_files(in_blocks)
    assert [sum(file.row_groups or ()) for file in files] == [40, 20]
    units = plan_units(files, rows_per_unit=10, fingerprint="f")
    assert [unit.rows is not None and unit.rows >= 10 for unit in units].count(False) <= len(files)
    assert len(units) >= 4
    assert len({unit.unit_id for unit in units}) == len(units)
    assert [Unit.from_dict(json.loads(json.dumps(unit.to_dict()))) for unit in units] == units
    without = [replace(file, row_groups=None, offsets=()) for file in files]
    for file, whole in zip(files, plan_units(without, rows_per_unit=10, fingerprint="f"), strict=True):
        parts = [examples_of(unit) for unit in units if unit.piece.relative == file.relative]
        good, bad = (list(chain.from_iterable(side)) for side in zip(*parts, strict=True))
        assert (good, bad) == examples_of(whole)


def test_a_row_is_found_again_by_reading_its_block_alone(
    in_blocks: PipelineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents gigabytes from being read, and parsed, to show the text of one row."""
    files, sources = corpus_files(in_blocks, identify=False), ["a.jsonl:3", "a.jsonl:39", "b.jsonl.gz:15"]
    parsed: list[bytes] = []
    parse = json_lines.parse

    def counted(line: bytes) -> object:
        parsed.append(line)
        return parse(line)

    monkeypatch.setattr("influcoder_ray.tables.rows.parse", counted)
    found = find_rows(files, COLUMNS.names, sources)
    assert 0 < len(parsed) < 30
    whole = [replace(file, row_groups=None, offsets=()) for file in files]
    assert found == find_rows(whole, COLUMNS.names, sources)
    assert found.keys() == set(sources)


def test_blocks_of_a_corpus_that_has_changed_are_not_used(in_blocks: PipelineSettings, corpus: Path) -> None:
    """A file that was edited since has its lines elsewhere: its old blocks would tear them."""
    with (corpus / "a.jsonl").open("a") as file:
        file.write('{"prompt": "new", "response": "row"}\n')
    assert all(file.row_groups is None for file in corpus_files(in_blocks))


def test_the_blocks_table_is_as_its_schema_says(in_blocks: PipelineSettings) -> None:
    """The later stages read it without asking what it holds."""
    place = in_blocks.root / sample.LINE_BLOCKS / "unit0.parquet"
    table = pa.parquet.read_table(place.path)
    assert table["start"][0].as_py() == 0
    assert table["end"].to_pylist()[:-1] == table["start"].to_pylist()[1:]
    assert sum(table["rows"].to_pylist()) == 40
