"""Columns to examples: every row becomes an example or is set aside with its reason, never neither."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from influcoder_ray.examples import ColumnSpec, Example, Turn
from influcoder_ray.examples.columns import Unusable, examples_from_cells
from influcoder_ray.tables.cells import Cells, read_cells
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.json_lines import Unreadable
from influcoder_ray.tables.units import plan_units

PAIR = ColumnSpec(prompt="q", response="a")
TEXT = ColumnSpec(text="t")
CHAT = ColumnSpec(messages="m")
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01"


MIXED = ColumnSpec(text="t", prompt="q", response="a")


def _read(path: Path, columns: ColumnSpec) -> tuple[list[Example], list[Unusable]]:
    """Every example and unusable row of a file, as a stage reads it."""
    examples: list[Example] = []
    unusable: list[Unusable] = []
    files = find_data_files(str(path), setting="corpus.path")
    for unit in plan_units(files, rows_per_unit=1, fingerprint="f"):
        cells = read_cells(unit, columns.names)
        used, refused = examples_from_cells(cells, columns, relative=unit.piece.relative)
        examples += used
        unusable += refused
    return examples, unusable


def _one(columns: ColumnSpec, **cells: Any) -> Example | str:
    """The example that one row makes, or why it makes none."""
    used, refused = examples_from_cells(Cells([0], {k: [v] for k, v in cells.items()}), columns, relative="f")
    assert len(used) + len(refused) == 1
    return used[0] if used else refused[0].reason


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"id": "i"},
        {"text": "t", "prompt": "p"},
        {"text": "t", "response": "r"},
        {"text": "t", "messages": "m"},
        {"messages": "m", "response": "r"},
        {"prompt": "p"},
        {"response": "r"},
        {"prompt": [], "response": "r"},
        {"text": ""},
        {"prompt": "", "response": "r"},
        {"prompt": ["p", ""], "response": "r"},
        {"text": "t", "id": ""},
        {"text": "t", "txet": "x"},
    ],
)
def test_columns_that_name_no_kind_two_kinds_or_something_unknown_are_refused(fields: dict[str, Any]) -> None:
    """Prevents a run over the wrong columns, or one that ignores a misspelt key."""
    with pytest.raises(ValidationError):
        ColumnSpec.model_validate(fields)


def test_a_column_spec_names_each_column_once() -> None:
    """Prevents a column from being read twice, or the user's ids from not being read."""
    joined = ColumnSpec.model_validate({"id": "q", "prompt": ["q", "more"], "response": "a"})
    assert joined.names == ["q", "more", "a"]
    assert [spec.names for spec in (TEXT, CHAT, MIXED)] == [["t"], ["m"], ["t", "q", "a"]]


# (prompt, response) as a file holds them, and the reason for which the row is set aside (None: used).
POISON: dict[str, tuple[Any, Any, str | None]] = {
    "good": ("What?", "That.", None),
    "null": ("q", None, "response is null"),
    "null prompt": (None, "a", "prompt is empty"),
    "empty": ("q", "", "response is empty"),
    "spaces": ("q", " \t\u00a0\n ", "response is white space only"),
    "5 MB": ("q", "x " * 2_600_000, None),
    "surrogate": ("q", "a\ud83d", "{surrogate}"),
    "control characters": ("q\x07", "\x00\x01\x1b[2J", None),
    "only a prompt": ("Why is this alone?", None, "response is null"),
    "long": ("q", "word " * 5000, None),
    "image": ("q", PNG, "{image}"),
    "good at the end": ("Where?", "There.", None),
}


def test_poisoned_rows_of_parquet_are_used_or_set_aside_for_the_stated_reason(tmp_path: Path) -> None:
    """Prevents one bad cell from ending a run, from spoiling its neighbours or from vanishing."""

    def raw(value: Any) -> Any:
        return value.encode(errors="surrogatepass") if isinstance(value, str) else value

    binary = [pa.array([raw(row[i]) for row in POISON.values()], pa.binary()) for i in range(2)]
    strings = [pa.Array.from_buffers(pa.string(), len(b), b.buffers(), b.null_count) for b in binary]
    for kind, (prompts, responses) in {"string": strings, "binary": binary}.items():
        path = tmp_path / f"{kind}.parquet"
        pq.write_table(pa.table({"q": prompts, "a": responses}), path, row_group_size=5)
        not_text = "response is not UTF-8 text"
        _check_poison(path, {"{surrogate}": not_text, "{image}": not_text})


def test_poisoned_rows_of_json_lines_are_used_or_set_aside_for_the_stated_reason(tmp_path: Path) -> None:
    """Prevents one bad line from ending a run, from spoiling its neighbours or from vanishing."""
    path = tmp_path / "a.jsonl"
    with path.open("wb") as stream:
        for prompt, response, _ in POISON.values():
            if isinstance(response, bytes):
                stream.write(b'{"q": "q", "a": "' + response.replace(b"\n", b"") + b'"}\n')
            else:
                stream.write(json.dumps({"q": prompt, "a": response}).encode() + b"\n")
    surrogate = "the line holds a lone surrogate, which is no Unicode text"
    _check_poison(path, {"{surrogate}": surrogate, "{image}": "the line is not UTF-8"})


def _check_poison(path: Path, reasons: dict[str, str]) -> None:
    used, refused = _read(path, PAIR)
    sources = {name: f"{path.name}:{row}" for row, name in enumerate(POISON)}
    expected = {
        sources[name]: reasons.get(reason, reason) for name, (_, _, reason) in POISON.items() if reason
    }
    assert {u.source: u.reason for u in refused} == expected
    assert all(u.example_id == u.source for u in refused)
    good = {e.source: e for e in used}
    for name, (prompt, response, reason) in POISON.items():
        if reason is None:
            example = good.pop(sources[name])
            assert (example.prompt, example.response) == (prompt, response), name
    assert not good


def test_an_image_dropped_into_json_lines_costs_its_own_lines_only(tmp_path: Path) -> None:
    """Prevents raw bytes, whose newlines cut them into several lines, from taking good rows along."""
    path = tmp_path / "a.jsonl"
    good = b'{"t": "good"}\n'
    path.write_bytes(good + PNG + b"\n" + good)
    used, refused = _read(path, TEXT)
    assert [e.source for e in used] == ["a.jsonl:0", "a.jsonl:4"]
    assert [u.source for u in refused] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]


def test_ids_are_the_relative_file_and_the_row_across_units(tmp_path: Path) -> None:
    """Prevents row numbers that start again at every unit, and so ids that repeat."""
    (tmp_path / "x").mkdir()
    pq.write_table(pa.table({"t": list("abcde")}), tmp_path / "x/p.parquet", row_group_size=2)
    (tmp_path / "y.jsonl").write_text('{"t": "a"}\n\n{"t": "b"}\n')
    used, refused = _read(tmp_path, TEXT)
    rows = [f"x/p.parquet:{i}" for i in range(5)]
    assert [e.example_id for e in used] == [*rows, "y.jsonl:0", "y.jsonl:2"]
    assert [(u.example_id, u.reason[:20]) for u in refused] == [("y.jsonl:1", "the line is not JSON")]
    assert [e.source for e in used] == [e.example_id for e in used]


def test_the_users_ids_are_kept_as_text_and_bad_ones_set_their_row_aside() -> None:
    """Prevents integer ids from being refused, and rows without an id from being used under another's."""
    columns = ColumnSpec(id="i", text="t")
    values = [7, -1, b"bytes", "text", None, " ", b"\xff", 1.5, Unreadable("the line is not JSON")]
    cells = Cells(range(10, 10 + len(values)), {"i": values, "t": ["x"] * len(values)})
    used, refused = examples_from_cells(cells, columns, relative="f")
    assert [(e.example_id, e.source) for e in used] == [
        ("7", "f:10"),
        ("-1", "f:11"),
        ("bytes", "f:12"),
        ("text", "f:13"),
    ]
    assert [(u.example_id, u.source, u.reason) for u in refused] == [
        ("f:14", "f:14", "id is null"),
        ("f:15", "f:15", "id is white space only"),
        ("f:16", "f:16", "id is not UTF-8 text"),
        ("f:17", "f:17", "id is a float, not text"),
        ("f:18", "f:18", "the line is not JSON"),
    ]


def test_a_refused_row_keeps_the_users_id() -> None:
    """Prevents the quarantine table from naming a row in a way that its owner does not know."""
    cells = Cells([3], {"i": [7], "t": [None]})
    used, (row,) = examples_from_cells(cells, ColumnSpec(id="i", text="t"), relative="f")
    assert used == []
    assert row == Unusable("7", "f:3", "text is null")


def test_prompt_columns_are_joined_and_empty_ones_left_out() -> None:
    """Prevents stray empty lines, or the word None, in prompts made of optional columns."""
    columns = ColumnSpec(prompt=("q", "context"), response="a")
    for context, prompt in (("c", "q\n\nc"), (b"c", "q\n\nc"), (None, "q"), ("", "q"), (" \n", "q")):
        example = _one(columns, q="q", context=context, a="a")
        assert isinstance(example, Example)
        assert example.prompt == prompt
    assert _one(columns, q=None, context=" ", a="a") == "prompt is empty"
    assert _one(columns, q="q", context=3, a="a") == "context is a int, not text"


def _message(role: Any, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


USER, ANSWER = _message("user", "Hi"), _message("assistant", "Hello")
SYSTEM = _message(b"system", b"Be brief.")


def test_a_single_user_turn_is_a_plain_pair() -> None:
    """Prevents a chat row and the same prompt and response from being two contents."""
    chat, pair = _one(CHAT, m=[USER, ANSWER]), _one(PAIR, q="Hi", a="Hello")
    assert isinstance(chat, Example)
    assert isinstance(pair, Example)
    assert chat == pair
    assert chat.turns == ()
    assert chat.content_hash == pair.content_hash


def test_a_system_message_and_several_turns_are_kept_before_the_last_answer() -> None:
    """Prevents the context of an answer from being lost, or an earlier answer from being the response."""
    again = _message("user", "And now?")
    example = _one(CHAT, m=[SYSTEM, USER, ANSWER, again, _message("assistant", "Bye")])
    assert isinstance(example, Example)
    assert example.response == "Bye"
    assert example.turns == (
        Turn("system", "Be brief."),
        Turn("user", "Hi"),
        Turn("assistant", "Hello"),
        Turn("user", "And now?"),
    )
    assert example.prompt == "system: Be brief.\n\nuser: Hi\n\nassistant: Hello\n\nuser: And now?"


def test_chats_as_sharegpt_writes_them_are_the_same_examples() -> None:
    """Prevents the many instruction sets of `from` and `value` from being set aside whole, or their speakers
    from reaching the chat template under names that it does not know."""

    def said(speaker: str, value: Any) -> dict[str, Any]:
        return {"from": speaker, "value": value, "weight": None}

    short = [said("human", "Hi"), said("gpt", "Hello")]
    assert _one(CHAT, m=short) == _one(CHAT, m=[USER, ANSWER])
    longer = [said("system", ""), *short, said("tool", "12"), said("gpt", "Twelve")]
    assert _one(CHAT, m=longer) == _one(
        CHAT, m=[USER, ANSWER, _message("tool", "12"), _message("assistant", "Twelve")]
    )
    assert _one(CHAT, m=[said("human", "Hi"), said("gpt", None)]) == "content is null"


def test_a_trailing_user_turn_is_not_part_of_the_example() -> None:
    """Prevents an unanswered question from standing in the prompt of the answer before it."""
    assert _one(CHAT, m=[USER, ANSWER, _message("user", "And?")]) == _one(CHAT, m=[USER, ANSWER])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "messages is null or empty"),
        ([], "messages is null or empty"),
        (b"[{}]", "messages is a bytes, not a list"),
        ("text", "messages is a str, not a list"),
        (Unreadable("the line is not UTF-8"), "the line is not UTF-8"),
        ([USER], "messages hold no assistant answer to a prompt"),
        ([ANSWER], "messages hold no assistant answer to a prompt"),
        ([ANSWER, USER], "messages hold no assistant answer to a prompt"),
        ([USER, None], "a message lacks role and content, or from and value"),
        ([USER, {"role": "assistant"}], "a message lacks role and content, or from and value"),
        ([USER, _message("assistant", None)], "content is null"),
        ([USER, _message("assistant", " ")], "content is white space only"),
        ([USER, _message("assistant", [{"type": "text"}])], "content is a list, not text"),
        ([_message("user", b"\xff"), ANSWER], "content is not UTF-8 text"),
    ],
)
def test_messages_without_an_answer_to_a_prompt_are_set_aside(messages: Any, reason: str) -> None:
    """Prevents a chat that teaches nothing from being given a gradient."""
    assert _one(CHAT, m=messages) == reason


def test_raw_text_is_the_response_of_an_empty_prompt() -> None:
    """Prevents raw text from being taken for a prompt, on which no loss falls."""
    example = _one(TEXT, t="words")
    assert isinstance(example, Example)
    assert (example.prompt, example.response, example.is_raw_text) == ("", "words", True)


@pytest.mark.parametrize("empty", [None, ""])
def test_each_row_of_a_mixed_corpus_is_what_its_filled_cells_say(empty: str | None) -> None:
    """Prevents posts and documents from being dropped, or read as answers to nothing, beside pairs."""
    raw = _one(MIXED, t="some text", q=empty, a=empty)
    pair = _one(MIXED, t=empty, q="why", a="because")
    assert isinstance(raw, Example)
    assert isinstance(pair, Example)
    assert (raw.is_raw_text, raw.response) == (True, "some text")
    assert (pair.prompt, pair.response) == ("why", "because")
    assert _one(MIXED, t="some text", q="why", a="because") == "text and response are both filled"
    assert _one(MIXED, t=empty, q="why", a="") == "response is empty"
    assert _one(MIXED, t=empty, q=empty, a=None) == "response is null"
