"""The rows that doctor looks at are the first usable ones of what a user has."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influcoder_ray.doctor.rows import BUILT_IN, first_examples, usual_columns
from influcoder_ray.errors import UserError
from influcoder_ray.examples import ColumnSpec
from influcoder_ray.tables import cells, rows
from influcoder_ray.tables.datafiles import find_data_files


def parquet(path: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=4)
    return path


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["prompt", "response", "text"], ColumnSpec(prompt="prompt", response="response")),
        (["answer", "id", "prompt", "task"], ColumnSpec(prompt="prompt", response="answer")),
        (
            ["instruction", "input", "output"],
            ColumnSpec(prompt=("instruction", "input"), response="output"),
        ),
        (["question", "answer"], ColumnSpec(prompt="question", response="answer")),
        (["messages", "prompt", "response"], ColumnSpec(messages="messages")),
        (["text", "prompt"], ColumnSpec(text="text")),
    ],
)
def test_usual_names_say_what_columns_hold(names: list[str], columns: ColumnSpec, tmp_path: Path) -> None:
    """Prevents raw text where there is a response to put the loss on, and the reverse."""
    (file,) = find_data_files(str(parquet(tmp_path / "f.parquet", **{n: ["x"] for n in names})), setting="s")
    assert usual_columns(file, setting="s") == columns


def test_unusual_names_are_refused_with_those_that_are_there(tmp_path: Path) -> None:
    """Prevents a guess at which column is meant."""
    (file,) = find_data_files(str(parquet(tmp_path / "f.parquet", body=["x"], response=["y"])), setting="s")
    with pytest.raises(UserError, match=r"it has body, response; name them in a settings file"):
        usual_columns(file, setting="s")


def test_rows_that_cannot_be_used_are_passed_over_and_the_rest_keep_their_places(tmp_path: Path) -> None:
    """Prevents a check of fewer rows than asked for, or one that names the wrong row."""
    texts: list[object] = [None, "a", "", "b", "c", " ", "d", None, "e", "f"]
    path = parquet(tmp_path / "f.parquet", text=texts)
    found = first_examples(find_data_files(str(path), setting="s"), None, 4, setting="s")
    assert [(e.response, e.source) for e in found] == [
        ("a", "f.parquet:1"),
        ("b", "f.parquet:3"),
        ("c", "f.parquet:4"),
        ("d", "f.parquet:6"),
    ]


def test_rows_go_on_in_the_next_file(tmp_path: Path) -> None:
    """Prevents a short first file from ending the search."""
    for name in ("a", "b"):
        parquet(tmp_path / f"{name}.parquet", text=[f"{name}0", f"{name}1"])
    files = find_data_files(str(tmp_path), setting="s")
    found = first_examples(files, ColumnSpec(text="text"), 3, setting="s")
    assert [e.response for e in found] == ["a0", "a1", "b0"]


def test_json_lines_keep_their_numbers_over_parts_and_are_read_no_further_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a corpus of gigabytes from being read for a dozen rows."""
    lines = [json.dumps({"prompt": f"p{i}", "response": f"r{i}"}) for i in range(10)]
    lines[1] = "no JSON"
    (tmp_path / "f.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(cells, "_ROWS_AT_ONCE", 3)
    parsed = []
    parse = rows.parse
    files = find_data_files(str(tmp_path / "f.jsonl"), setting="s")
    monkeypatch.setattr(rows, "parse", lambda line: parsed.append(line) or parse(line))
    found = first_examples(files, None, 4, setting="s")
    assert [(e.response, e.source) for e in found] == [(f"r{i}", f"f.jsonl:{i}") for i in (0, 2, 3, 4)]
    assert len(parsed) == 6


def test_built_in_rows_differ_and_are_of_both_kinds() -> None:
    """Prevents a handful whose gradients are all alike, of which no rank agreement could be told."""
    assert len({e.content_hash for e in BUILT_IN}) == len(BUILT_IN)
    assert len({e.example_id for e in BUILT_IN}) == len(BUILT_IN)
    assert {e.is_raw_text for e in BUILT_IN} == {True, False}
