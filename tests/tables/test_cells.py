"""Raw cells: one bad cell or line never spoils its neighbours."""

import bz2
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from influcoder_ray.errors import UserError
from influcoder_ray.tables import json_lines
from influcoder_ray.tables.cells import cells_in_parts, read_cells
from influcoder_ray.tables.conditions import Condition
from influcoder_ray.tables.datafiles import find_data_files, require_columns, require_types
from influcoder_ray.tables.json_lines import Unreadable
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.units import Unit, plan_units

BAD = b"\xff\xfe not UTF-8 \x80"
RAW = [b"plain", BAD, None, "é".encode()]


def _units(path: Path, rows_per_unit: int = 1 << 30) -> list[Unit]:
    files = find_data_files(str(path), setting="corpus.path")
    return plan_units(files, rows_per_unit=rows_per_unit, fingerprint="f")


def _cells(path: Path, column: str = "text") -> list[Any]:
    (unit,) = _units(path)
    return read_cells(unit, [column])[column]


def _string(kind: pa.DataType = pa.string()) -> pa.Array:  # noqa: B008 - an immutable type
    """A column of strings of which one is no UTF-8, as careless writers leave them."""
    raw = pa.array(RAW, pa.large_binary() if kind == pa.large_string() else pa.binary())
    return pa.Array.from_buffers(kind, len(raw), raw.buffers(), raw.null_count)


def _turns() -> pa.StructArray:
    role = pa.array(["user", "assistant", "user", "assistant"])
    return pa.StructArray.from_arrays([role, _string()], ["role", "content"])


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "dictionary"])
def test_text_columns_of_any_kind_come_as_bytes_and_bad_utf8_stays_in_its_cell(
    kind: str, tmp_path: Path
) -> None:
    """Prevents one cell of bad UTF-8 from failing the whole file."""
    column = {
        "string": _string,
        "large_string": lambda: _string(pa.large_string()),
        "binary": lambda: pa.array(RAW, pa.binary()),
        "dictionary": lambda: pa.DictionaryArray.from_arrays(
            pa.array([0, 1, None, 2], pa.int32()), _string().drop_null()
        ),
    }[kind]()
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", row_group_size=3)
    assert _cells(tmp_path / "a.parquet") == RAW


@pytest.mark.parametrize("kind", [pa.ListArray, pa.LargeListArray, "fixed"])
def test_messages_come_as_lists_of_structs_whose_text_is_bytes(kind: Any, tmp_path: Path) -> None:
    """Prevents bad UTF-8 inside a nested column from failing the whole file."""
    turns = _turns()
    column = (
        pa.FixedSizeListArray.from_arrays(turns, 2) if kind == "fixed" else kind.from_arrays([0, 2, 4], turns)
    )
    pq.write_table(pa.table({"messages": column}), tmp_path / "a.parquet")
    contents = [[m["content"] for m in row] for row in _cells(tmp_path / "a.parquet", "messages")]
    assert contents == [RAW[:2], RAW[2:]]


def test_messages_with_roles_as_a_dictionary_are_read(tmp_path: Path) -> None:
    """Prevents a nested dictionary, as category columns make them, from failing the cast."""
    role = pa.array(["user", "assistant", "user", "assistant"]).dictionary_encode()
    turns = pa.StructArray.from_arrays([role, _string()], ["role", "content"])
    column = pa.ListArray.from_arrays([0, 2, 2, 4], turns)
    pq.write_table(pa.table({"messages": column}), tmp_path / "a.parquet")
    rows = _cells(tmp_path / "a.parquet", "messages")
    assert [[m["role"] for m in row] for row in rows] == [
        [b"user", b"assistant"],
        [],
        [b"user", b"assistant"],
    ]


def test_a_unit_reads_its_own_row_groups_and_the_named_columns(tmp_path: Path) -> None:
    """Prevents a unit from reading its neighbour's rows, and columns from being mixed up."""
    table = pa.table({"b.c": [f"t{i}" for i in range(7)], "id": range(7), "b": [None] * 7})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    units = _units(tmp_path / "a.parquet", rows_per_unit=3)
    cells = [read_cells(unit, ["id", "b.c"]) for unit in units]
    assert [list(c.values) for c in cells] == [["id", "b.c"]] * 2
    assert [c["id"] for c in cells] == [[0, 1, 2, 3], [4, 5, 6]]
    assert cells[1]["b.c"] == [b"t4", b"t5", b"t6"]
    assert [unit.first_row for unit in units] == [0, 4]


def _reasons(path: Path) -> list[Any]:
    return [cell.reason if isinstance(cell, Unreadable) else cell for cell in _cells(path)]


def test_a_line_that_cannot_be_read_is_one_unreadable_row_with_its_reason(tmp_path: Path) -> None:
    """Prevents one broken line from ending the run, or from shifting the numbers of the rows after it."""
    lines: list[tuple[bytes, Any]] = [
        (b'{"text": "first"}', "first"),
        (b'{"text": "cut', "the line is not JSON: Unterminated string"),
        (b'["text"]', "the line is a JSON list, not an object"),
        (b"3", "the line is a JSON int, not an object"),
        (b"null", "the line is a JSON NoneType, not an object"),
        (b"", "the line is not JSON: Expecting value"),
        (b"   ", "the line is not JSON: Expecting value"),
        (b'{"text": "\xff"}', "the line is not UTF-8"),
        (b'{"text": "\\ud800"}', "the line holds a lone surrogate"),
        (b'{"text": "x", "\\uDc00": 1}', "the line holds a lone surrogate"),
        (b'{"text": "\\ud83d\\ude00"}', "\U0001f600"),
        (b'{"n": ' + b"1" * 5000 + b"}", "the line is not JSON: Exceeds the limit"),
        (b"[" * 200_000, "the line is not JSON: maximum recursion depth"),
        (b'{"other": 1}', None),
        (b'{"text": 7}', 7),
        (b'{"text": "last"}', "last"),
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(line for line, _ in lines))
    found = _reasons(path)
    assert len(found) == len(lines)
    for got, (line, expected) in zip(found, lines, strict=True):
        same = (
            got.startswith(expected)
            if isinstance(got, str) and isinstance(expected, str)
            else got == expected
        )
        assert same, (line[:40], got)


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "jsonl.gz", "jsonl.zst", "jsonl.bz2"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_plain_and_compressed_files_give_the_same_rows_whatever_ends_their_lines(
    suffix: str, end: str, tmp_path: Path
) -> None:
    """Prevents the last row from being lost without a newline, or doubled with one."""
    text = (end or "\n").join(json.dumps({"text": f"row {i} é"}) for i in range(5)) + end
    _write(tmp_path / f"a.{suffix}", [text.encode()])
    assert _cells(tmp_path / f"a.{suffix}") == [f"row {i} é" for i in range(5)]


def _write(path: Path, members: list[bytes]) -> None:
    compress: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".zst": lambda data: bytes(pa.Codec("zstd").compress(data)),
    }
    path.write_bytes(b"".join(compress.get(path.suffix, bytes)(member) for member in members))


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2"])
def test_a_file_of_several_compressed_members_is_read_to_its_end(suffix: str, tmp_path: Path) -> None:
    """Prevents the rows after the first member of a concatenated compressed file from vanishing."""
    path = tmp_path / f"a.jsonl.{suffix}"
    _write(path, [b'{"text": "a"}\n{"te', b'xt": "b"}\n', b'{"text": "c"}\n'])
    assert _cells(path) == ["a", "b", "c"]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "jsonl.bz2"])
def test_a_line_longer_than_the_read_block_is_one_row(suffix: str, tmp_path: Path) -> None:
    """Prevents a document of megabytes from being cut at the border of a read."""
    texts = ["short", "x" * (3 << 20), "y" * (1 << 20), "end"]
    _write(tmp_path / f"a.{suffix}", ["".join(json.dumps({"text": t}) + "\n" for t in texts).encode()])
    assert _cells(tmp_path / f"a.{suffix}") == texts


@given(st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\n", b"")), max_size=8), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_lines_do_not_depend_on_the_size_of_the_read_block(parts: list[bytes], block: int) -> None:
    """Prevents a line end at the border of a block from adding or losing a row."""
    place = Place("memory://lines/a.jsonl")
    place.write_whole(b"".join(part + b"\n" for part in parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "_READ_BYTES", block)
        assert list(json_lines.lines(place)) == parts


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "jsonl.bz2"])
@given(lengths=st.lists(st.integers(0, 30), max_size=12), end=st.booleans(), least=st.integers(1, 60))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_hold_every_line_once_and_are_found_again_by_their_bytes(
    suffix: str, lengths: list[int], end: bool, least: int, tmp_path: Path
) -> None:
    """Prevents rows that two workers read, or none, where a large file is shared among them."""
    lines = [(chr(97 + i) * length).encode() for i, length in enumerate(lengths)]
    _write(tmp_path / f"a.{suffix}", [b"\n".join(lines) + b"\n" * end])
    place = Place(str(tmp_path / f"a.{suffix}"))
    whole = list(json_lines.lines(place))
    blocks = list(json_lines.line_blocks(place, block_bytes=least))
    assert [line for block in blocks for line in block.lines] == whole
    row = 0
    for block in blocks:
        assert block.first_row == row
        assert list(json_lines.lines(place, block.span)) == block.lines
        row += len(block.lines)
    assert all(block.span[1] - block.span[0] >= least for block in blocks[:-1])
    # A part of the blocks may be cut anew, as exploring does.
    for block in blocks[1:]:
        again = list(json_lines.line_blocks(place, block.span, first_row=block.first_row, block_bytes=1))
        assert [line for part in again for line in part.lines] == block.lines
        assert again[0].first_row == block.first_row


NESTED: list[dict[str, Any]] = [
    {"id": 0, "meta": {"url": "a", "said": {"text": "one"}}, "meta.url": None},
    {"id": 1, "meta": {"url": None, "said": {"text": "two"}}, "meta.url": "own"},
    {"id": 2, "meta": {"url": "c", "said": None}, "meta.url": None},
    {"id": 3, "meta": None, "meta.url": None},
    {"id": 4, "meta": {"url": "e", "said": {"text": "five"}}, "meta.url": None},
]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_field_within_a_column_is_read_like_a_column(kind: str, tmp_path: Path) -> None:
    """Prevents corpora that keep ids or texts within `metadata` from having to be written anew first, and a
    null on the way to a field from being anything but null."""
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(NESTED), path, row_group_size=3)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in NESTED))
    names = ["id", "meta.said.text", "meta.url"]
    where = (("meta.said.text", Condition(none_of=("two",))),)
    # A column of the whole name goes before a field.
    urls = [None, "own", None, None, None]

    def plain(values: Sequence[Any]) -> list[Any]:
        return [value.decode() if isinstance(value, bytes) else value for value in values]

    (file,) = find_data_files(str(path), setting="corpus.path")
    require_columns([file], names, setting="corpus.columns")
    require_types([file], [("meta.said.text", "text")], setting="corpus.columns")
    (unit,) = plan_units([file], rows_per_unit=9, fingerprint="f")
    cells = read_cells(unit, names)
    assert plain(cells["meta.said.text"]) == ["one", "two", None, None, "five"]
    assert plain(cells["meta.url"]) == urls
    in_parts = [cells for _, cells in cells_in_parts(file, names, rows_at_once=2)]
    assert plain([v for part in in_parts for v in part["meta.said.text"]]) == plain(cells["meta.said.text"])

    (some,) = find_data_files(str(path), setting="corpus.path", where=where)
    (unit,) = plan_units([some], rows_per_unit=9, fingerprint="f")
    cells = read_cells(unit, names)
    assert (list(cells.rows), plain(cells["meta.said.text"])) == ([0, 4], ["one", "five"])


def test_a_field_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    """Prevents a mistyped field from being found out row by row."""
    pq.write_table(pa.Table.from_pylist(NESTED).drop_columns(["meta.url"]), tmp_path / "a.parquet")
    files = find_data_files(str(tmp_path), setting="corpus.path")
    with pytest.raises(UserError, match=r"no column 'meta\.uri'; it has id, meta \(url, said \(text\)\)$"):
        require_columns(files, ["id", "meta.uri"], setting="corpus.columns")
    with pytest.raises(UserError, match=r"'meta\.said' of .* is struct<text: string>, not text"):
        require_types(files, [("meta.said", "text")], setting="corpus.columns")
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "b.jsonl").write_text('{"id": 1}\n')
    files = find_data_files(str(tmp_path), setting="corpus.path")
    with pytest.raises(UserError, match=r"no column 'meta\.url'; it has id$"):
        require_columns(files, ["meta.url"], setting="corpus.columns")
