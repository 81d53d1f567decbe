"""Data files: found and recognised, or refused in one line that names the setting and the path."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influcoder_ray.errors import UserError
from influcoder_ray.tables.datafiles import Kind, find_data_files, require_columns, require_types
from influcoder_ray.tables.units import plan_units


def _parquet(path: Path, rows: int = 3, rows_per_group: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": range(rows), "text": [f"{path.parent.name} {i}" for i in range(rows)]})
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path


def _names(uri: Path | str) -> list[str]:
    return [file.relative for file in find_data_files(str(uri), setting="corpus.path")]


def _refusal(uri: Path | str) -> str:
    with pytest.raises(UserError) as refused:
        find_data_files(str(uri), setting="corpus.path")
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"corpus.path: {uri}")
    return message


def test_a_file_a_folder_and_a_glob_give_the_same_file(tmp_path: Path) -> None:
    """Prevents one of the three ways of naming data from reading something else."""
    path = _parquet(tmp_path / "a.parquet")
    (tmp_path / "notes.txt").write_text("no data")
    found = [
        find_data_files(str(uri), setting="corpus.path") for uri in (path, tmp_path, tmp_path / "*.parquet")
    ]
    for files in found:
        assert [(f.place.path, f.relative, f.row_groups) for f in files] == [(str(path), "a.parquet", (2, 1))]
        assert files[0].is_parquet
        assert files[0].columns == ("id", "text")
    assert len({files[0].identity for files in found}) == 1


def test_every_known_suffix_is_found_and_others_are_not(tmp_path: Path) -> None:
    """Prevents a compressed shard from being left out of the corpus without a word."""
    lines = ("a.jsonl", "b.ndjson", "c.jsonl.gz", "e.jsonl.zst", "f.jsonl.bz2")
    for name in (*lines, "g.csv", "h.json", "i.parquet.tmp", "j.txt"):
        (tmp_path / name).write_bytes(b"")
    _parquet(tmp_path / "d.parquet")
    assert _names(tmp_path) == sorted((*lines, "d.parquet"))


def test_folders_and_files_that_begin_with_an_underscore_or_a_dot_are_skipped(tmp_path: Path) -> None:
    """Prevents another program's bookkeeping and cut-off writes from being read as corpus."""
    for name in ("z.parquet", "deep/er/y.parquet"):
        _parquet(tmp_path / name)
    for name in ("_state/a.parquet", "deep/_tmp/b.parquet", "_c.parquet", ".d.parquet", ".e/f.parquet"):
        _parquet(tmp_path / name)
    assert _names(tmp_path) == ["deep/er/y.parquet", "z.parquet"]


def test_files_of_one_name_in_two_folders_keep_apart_under_a_glob(tmp_path: Path) -> None:
    """Prevents equal ids for different rows, and one unit id for two identical files."""
    for part in ("1", "2"):
        _parquet(tmp_path / "same" / part / "p.parquet")
    (tmp_path / "same/2/p.parquet").write_bytes((tmp_path / "same/1/p.parquet").read_bytes())
    pattern = str(tmp_path / "same/*/p.parquet")
    assert _names(pattern) == ["1/p.parquet", "2/p.parquet"] == _names(tmp_path / "same")
    files = find_data_files(pattern, setting="corpus.path")
    units = plan_units(files, rows_per_unit=100, fingerprint="f")
    assert len({unit.unit_id for unit in units}) == 2


def test_a_folder_that_a_glob_matches_is_not_opened_as_a_file(tmp_path: Path) -> None:
    """Prevents a traceback on the folders named `x.parquet` that Spark and Dask write."""
    _parquet(tmp_path / "spark.parquet/part-0.parquet")
    _parquet(tmp_path / "b.parquet")
    assert _names(tmp_path / "*.parquet") == ["b.parquet"]
    assert _names(tmp_path / "spark.parquet") == ["part-0.parquet"]


def test_a_path_with_brackets_that_exists_is_taken_by_its_name(tmp_path: Path) -> None:
    """Prevents a folder called `run[1]` from being read as a pattern that matches nothing."""
    path = _parquet(tmp_path / "run[1]/a.parquet")
    assert _names(path.parent) == ["a.parquet"]
    assert _names(path) == ["a.parquet"]


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    """Prevents a traceback, or an empty run, for a mistyped path."""
    assert "does not exist" in _refusal(tmp_path / "nothing")
    assert "does not exist" in _refusal(tmp_path / "nothing.parquet")


def test_a_place_without_data_files_is_refused(tmp_path: Path) -> None:
    """Prevents an empty folder or a CSV from ending as a run over no rows."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.csv").write_text("a,b\n")
    for uri in (tmp_path / "empty", tmp_path / "table.csv", tmp_path / "*.jsonl"):
        assert "holds no data file; give Parquet (.parquet) or JSON Lines" in _refusal(uri)


def _corrupt(path: Path, how: str) -> None:
    data = _parquet(path).read_bytes()
    footer = int.from_bytes(data[-8:-4], "little")
    path.write_bytes(
        {
            "empty": b"",
            "text": b"this is a note about Parquet, and no Parquet at all",
            "cut": data[: len(data) // 2],
            "footer": data[: -8 - footer] + b"\xff" * footer + data[-8:],
        }[how]
    )


@pytest.mark.parametrize("how", ["empty", "text", "cut", "footer"])
def test_a_corrupt_parquet_file_is_refused_by_name(how: str, tmp_path: Path) -> None:
    """Prevents a broken download from ending in a traceback after hours, or from being left out."""
    _parquet(tmp_path / "good.parquet")
    bad = tmp_path / "bad.parquet"
    _corrupt(bad, how)
    with pytest.raises(UserError) as refused:
        find_data_files(str(tmp_path), setting="corpus.path")
    message = str(refused.value)
    assert message.startswith(f"corpus.path: {bad} is no readable Parquet file (")
    assert len(message.splitlines()) == 1


def test_a_corrupt_compressed_file_is_refused_by_name(tmp_path: Path) -> None:
    """Prevents a traceback for a file that only looks like gzip, or was cut off."""
    (tmp_path / "a.jsonl.gz").write_bytes(b'{"text": "not compressed"}\n')
    assert "is no readable JSON Lines file" in _refusal(tmp_path / "a.jsonl.gz")
    noise = "".join(chr(33 + i * i % 89) for i in range(5000)).encode()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(noise)[:60])
    assert "is no readable JSON Lines file" in _refusal(tmp_path / "b.jsonl.gz")


def test_a_missing_column_is_refused_with_what_is_there(tmp_path: Path) -> None:
    """Prevents a KeyError deep inside a worker for a mistyped column."""
    _parquet(tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"id": 1, "body": "x"}\n{"id": 2, "text": "y", "more": 1}\n')
    files = find_data_files(str(tmp_path), setting="corpus.path")
    require_columns(files, ["id", "text"], setting="corpus.columns")
    with pytest.raises(UserError) as refused:
        require_columns(files, ["id", "Text"], setting="corpus.columns")
    expected = f"corpus.columns: {tmp_path / 'a.parquet'} has no column 'Text'; it has id, text"
    assert str(refused.value) == expected
    with pytest.raises(UserError, match=r"b\.jsonl has no column 'prompt'; it has id, body, text, more"):
        require_columns(files[1:], ["prompt"], setting="corpus.columns")


@pytest.mark.parametrize(
    ("kind", "fits", "others"),
    [
        ("text", ["a", b"b", None], [1, 1.5, ["a"]]),
        ("text or whole numbers", ["a", 7, None], [7.0, ["a"], True]),
        ("lists", [[{"role": "user"}], None], ["[{}]", {"role": "user"}]),
    ],
)
def test_columns_that_hold_something_else_are_refused(
    kind: Kind, fits: list[object], others: list[object], tmp_path: Path
) -> None:
    """Prevents a corpus from being read to its end only to find that none of its rows can be used."""
    for value in fits:
        pq.write_table(pa.table({"x": [value]}), tmp_path / "a.parquet")
        require_types(find_data_files(str(tmp_path), setting="corpus.path"), [("x", kind)], setting="c")
    for value in others:
        pq.write_table(pa.table({"x": [value]}), tmp_path / "a.parquet")
        files = find_data_files(str(tmp_path), setting="corpus.path")
        with pytest.raises(UserError, match=rf"^corpus\.columns: 'x' of .* is .*, not {kind}; name a column"):
            require_types(files, [("x", kind)], setting="corpus.columns")


def test_a_parquet_file_without_any_column_lacks_every_column(tmp_path: Path) -> None:
    """Prevents the leave given to JSON Lines without objects from covering Parquet too."""
    pq.write_table(pa.table({}), tmp_path / "a.parquet")
    files = find_data_files(str(tmp_path), setting="corpus.path")
    with pytest.raises(UserError, match="has no column 'text'"):
        require_columns(files, ["text"], setting="corpus.columns")


def test_json_lines_whose_first_lines_hold_no_object_are_left_to_the_rows(tmp_path: Path) -> None:
    """Prevents one broken head of a file from being called a missing column."""
    (tmp_path / "a.jsonl").write_text("garbage\n[1]\n")
    files = find_data_files(str(tmp_path), setting="corpus.path")
    assert (files[0].columns, files[0].row_groups, files[0].is_parquet) == ((), None, False)
    require_columns(files, ["text"], setting="corpus.columns")


def test_files_that_nobody_names_are_not_looked_into(tmp_path: Path) -> None:
    """Prevents a few rows of a large corpus from costing a look at every file of it."""
    _parquet(tmp_path / "a.parquet")
    _parquet(tmp_path / "sub" / "a.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"none")
    found = find_data_files(str(tmp_path), setting="corpus.path", only={"sub/a.parquet", "gone.parquet"})
    assert [file.relative for file in found] == ["sub/a.parquet"]
    with pytest.raises(UserError, match=r"broken\.parquet"):
        find_data_files(str(tmp_path), setting="corpus.path", only={"broken.parquet"})
