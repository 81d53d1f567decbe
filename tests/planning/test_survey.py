"""Data are looked at, not read: rows from footers or densities, texts from a few places."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influcoder_ray.config import DataSpec
from influcoder_ray.errors import UserError
from influcoder_ray.examples import ColumnSpec
from influcoder_ray.planning import data as module
from influcoder_ray.planning.data import survey
from influcoder_ray.tables.json_lines import count_rows, lines
from influcoder_ray.tables.place import Place

TEXT = ColumnSpec(text="text")


def data(path: Path) -> DataSpec:
    return DataSpec(path=str(path), columns=TEXT)


def numbered(first: int, count: int) -> list[str]:
    return [f"row {row} of many" for row in range(first, first + count)]


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each read from any file."""
    sizes: list[int] = []
    opened = Place.open

    def noted(place: Place) -> BinaryIO:
        stream: Any = opened(place)
        read: Callable[..., bytes] = stream.read

        class Noting:
            def __getattr__(self, name: str) -> Any:
                return getattr(stream, name)

            def __enter__(self) -> "Noting":
                return self

            def __exit__(self, *_: object) -> None:
                stream.close()

            def read(self, *arguments: int) -> bytes:
                found = read(*arguments)
                sizes.append(len(found))
                return found

        return Noting()  # type: ignore[return-value]

    monkeypatch.setattr(Place, "open", noted)
    return sizes


def test_a_corpus_of_many_files_is_not_read(tmp_path: Path, read_bytes: list[int]) -> None:
    """Prevents a plan that takes as long, and as many bytes from a store, as the scan it should foretell."""
    generator = np.random.default_rng(0)
    # Pages of few rows, as a large file's are: a page is the least that can be read.
    plain: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_batch_size": 2}
    for number in range(64):
        texts = [generator.bytes(4000).hex() for _ in range(100)]
        table = pa.table({"text": texts})
        pq.write_table(table, tmp_path / f"{number:02}.parquet", data_page_size=1 << 14, **plain)
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    found = survey(data(tmp_path), setting="corpus", sampled_rows=64)
    assert (found.rows, found.counted) == (6400, True)
    assert len(found.examples) == 64
    # Footers are fetched 64 KiB at a time, and a few pages of 32 of the files.
    assert 0 < sum(read_bytes) < total / 4
    assert all(file.identity == "" for file in found.files)


def test_the_rows_looked_at_are_spread_over_all(tmp_path: Path) -> None:
    """Prevents tokens that are told by the first file, where a corpus begins with its shortest texts."""
    for number in range(5):
        table = pa.table({"text": numbered(1000 * number, 1000)})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=50)
    found = survey(data(tmp_path), setting="corpus", sampled_rows=128)
    rows = [int(e.response.split()[1]) for e in found.examples]
    assert found.looked_at == len(set(rows)) == 128
    of_file = np.bincount([row // 1000 for row in rows], minlength=5)
    assert of_file.min() >= 20
    for example, row in zip(found.examples, rows, strict=True):
        assert example.source == f"{row // 1000}.parquet:{row % 1000}"


def test_of_few_rows_each_is_looked_at_once(tmp_path: Path) -> None:
    """Prevents an estimate of what could be counted."""
    pq.write_table(pa.table({"text": numbered(0, 90)}), tmp_path / "a.parquet", row_group_size=20)
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in numbered(90, 10)))
    found = survey(data(tmp_path), setting="corpus", sampled_rows=100)
    assert [e.response for e in found.examples] == numbered(0, 100)
    assert (found.rows, found.counted, found.usable_rows) == (100, True, 100)
    # Whole row groups, and whole blocks of lines, which so few lines do not fill.
    assert found.units(40) == [40, 40, 10, 10]


def test_large_files_of_lines_are_planned_in_the_units_that_their_blocks_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a plan in which sixteen workers wait for the one that has the file."""
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in numbered(0, 1000)))
    monkeypatch.setattr(module, "BLOCK_BYTES", (tmp_path / "b.jsonl").stat().st_size // 20)
    found = survey(data(tmp_path), setting="corpus")
    assert found.units(1, lines_whole=True) == [1000]
    assert found.units(300) == [300, 300, 300, 100]
    assert sum(found.units(1)) == 1000
    assert len(found.units(1)) == pytest.approx(20, abs=1)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_small_files_are_planned_in_the_units_that_they_share(suffix: str, tmp_path: Path) -> None:
    """Prevents the cost of a unit from being charged for each of thousands of files."""
    for number in range(40):
        table, file = pa.table({"text": numbered(10 * number, 10)}), tmp_path / f"{number:02}.{suffix}"
        if suffix == "parquet":
            pq.write_table(table, file)
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    found = survey(data(tmp_path), setting="corpus", sampled_rows=1000)
    assert found.units(80) == [80] * 5
    # Before they are counted, so few bytes are hardly a row.
    assert found.units(20, lines_whole=True) == ([20] * 20 if suffix == "parquet" else [200] * 2)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "compressed"])
def test_rows_of_large_json_lines_are_estimated_and_marked(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: list[int]
) -> None:
    """Prevents a corpus of terabytes from being counted, and a guess from passing for a count."""
    # Compressed files are read 64 KiB at a time, whatever is asked for.
    monkeypatch.setattr(module, "_COUNTED_BYTES", 400_000 if packed else 20_000)
    monkeypatch.setattr("influcoder_ray.tables.json_lines._READ_BYTES", 8192)
    generator = np.random.default_rng(0)
    files, rows = (2, 50_000) if packed else (20, 3000)
    for number in range(files):
        texts = [generator.bytes(int(n)).hex() for n in generator.integers(20, 60, rows)]
        content = "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()
        name = f"{number:02}.jsonl" + (".gz" if packed else "")
        (tmp_path / name).write_bytes(gzip.compress(content, 1) if packed else content)
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    found = survey(data(tmp_path), setting="corpus", sampled_rows=64)
    assert not found.counted
    assert found.rows == pytest.approx(files * rows, rel=0.2)
    assert sum(read_bytes) < total / 2
    assert len(found.units(1)) == files


@pytest.mark.parametrize("content", ["", "a", "a\n", "a\nb", "\n", "a\n\nb\n"])
def test_rows_of_json_lines_are_counted_as_they_are_read(content: str, tmp_path: Path) -> None:
    """Prevents a last line without an end, or a blank one, from making a difference."""
    (tmp_path / "f.jsonl").write_text(content)
    place = Place(str(tmp_path / "f.jsonl"))
    counted = count_rows(place, most_bytes=1 << 20)
    assert (counted.rows, counted.whole) == (len(list(lines(place))), True)
    assert counted.size_bytes == len(content)


def test_rows_that_cannot_be_used_are_not_counted_on(tmp_path: Path) -> None:
    """Prevents a plan for rows that will lie in quarantine."""
    texts = [None if row % 4 == 0 else f"row {row}" for row in range(400)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    found = survey(data(tmp_path), setting="corpus")
    assert (found.rows, found.looked_at, found.usable_rows) == (400, 400, 300)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"text": pa.array([], pa.string())}), r"^corpus\.path: .* holds no rows"),
        (pa.table({"text": ["", " "]}), r"^corpus\.path: none of 2 rows .* \(text is empty\)"),
        (pa.table({"body": ["a"]}), r"^corpus\.columns: .* has no column 'text'; it has body$"),
        (pa.table({"text": [1]}), r"^corpus\.columns: 'text' .* is int64, not text"),
    ],
)
def test_data_that_cannot_be_used_are_refused(table: pa.Table, message: str, tmp_path: Path) -> None:
    """Prevents a plan for a run that would refuse to start."""
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        survey(data(tmp_path / "a.parquet"), setting="corpus")
