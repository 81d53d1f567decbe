"""Which columns of a corpus hold what, and the examples that its rows make."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from influcoder_ray.examples.example import Example, Turn
from influcoder_ray.spec import Spec
from influcoder_ray.tables.cells import Cells
from influcoder_ray.tables.datafiles import Kind
from influcoder_ray.tables.json_lines import Unreadable


class ColumnSpec(Spec):
    """The columns of a corpus: raw text, a prompt and a response, or chat messages.

    A mixed corpus names both text and prompt and response; each of its rows fills one of them. Each name
    may be that of a field within a column (`metadata.id`).
    """

    id: str | None = Field(
        default=None,
        description="Column with unique ids; without one an id is '<file>:<row>'. Ids that stand twice are "
        "refused in up to ten million rows of Parquet and a GiB of JSON Lines; of more it is not looked for.",
    )
    text: str | None = Field(default=None, description="Column with raw text; the loss falls on all of it.")
    prompt: str | tuple[str, ...] | None = Field(
        default=None,
        description="Column with the prompt, or several whose filled cells are joined by an empty line.",
    )
    response: str | None = Field(
        default=None, description="Column with the response; the loss falls on it alone."
    )
    messages: str | None = Field(
        default=None,
        description="Column with a list of {role, content}, or of {from, value} as ShareGPT has it; the last "
        "assistant message is the response.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "ColumnSpec":
        if "" in (self.id, self.text, *self.prompts, self.response, self.messages):
            raise ValueError("a column's name is empty; leave the field out or name the column")
        pair = self.prompt is not None or self.response is not None
        if (self.messages is None) == (self.text is None and not pair):
            raise ValueError("name one of: text; prompt and response; both of these; messages")
        if pair and (not self.prompts or self.response is None):
            raise ValueError("prompt and response go together")
        return self

    @property
    def prompts(self) -> tuple[str, ...]:
        return (self.prompt,) if isinstance(self.prompt, str) else (self.prompt or ())

    @property
    def kinds(self) -> list[tuple[str, Kind]]:
        """What each named column has to hold."""
        texts = (self.text, *self.prompts, self.response)
        named: list[tuple[str | None, Kind]] = [
            (self.id, "text or whole numbers"),
            *((name, "text") for name in texts),
            (self.messages, "lists"),
        ]
        return [(name, kind) for name, kind in named if name]

    @property
    def names(self) -> list[str]:
        """Every column that is read, once each."""
        named = [self.id, self.text, *self.prompts, self.response, self.messages]
        return list(dict.fromkeys(name for name in named if name))


# What ShareGPT, and the many sets that are written like it, call those who speak.
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Unusable:
    """A row that cannot be an example: where it lies and why."""

    example_id: str
    source: str
    reason: str


class _Refused(Exception):
    """Why one row cannot be used."""


def examples_from_cells(
    cells: Cells, columns: ColumnSpec, *, relative: str
) -> tuple[list[Example], list[Unusable]]:
    """The examples of a corpus's rows, and the rows that cannot be one with the reason.

    Args:
        cells: raw cells of N rows, numbered as in their file.
        relative: the file's name inside the corpus.
    """
    examples, unusable = [], []
    for place, number in enumerate(cells.rows):
        source = f"{relative}:{number}"
        row = {name: cells[name][place] for name in columns.names}
        example_id = source
        try:
            if columns.id:
                example_id = _identifier(row[columns.id])
            examples.append(_example(row, columns, example_id, source))
        except _Refused as refusal:
            unusable.append(Unusable(example_id, source, str(refusal)))
    return examples, unusable


def _example(row: Mapping[str, Any], columns: ColumnSpec, example_id: str, source: str) -> Example:
    if columns.messages:
        return _from_messages(row[columns.messages], example_id, source)
    if columns.text and not (columns.response and row[columns.text] in (None, "", b"")):
        if columns.response and row[columns.response] not in (None, "", b""):
            raise _Refused("text and response are both filled")
        return Example(example_id, "", _filled(row[columns.text], "text"), source)
    prompts = [_text(row[name], name) for name in columns.prompts if row[name] is not None]
    prompt = "\n\n".join(part for part in prompts if part.strip())
    response = _filled(row[columns.response or ""], "response")
    return Example(example_id, _filled(prompt, "prompt"), response, source)


def _from_messages(value: Any, example_id: str, source: str) -> Example:
    if isinstance(value, Unreadable):
        raise _Refused(value.reason)
    if value is None or value == []:
        raise _Refused("messages is null or empty")
    if not isinstance(value, list):
        raise _Refused(f"messages is a {type(value).__name__}, not a list")
    turns = []
    for message in value:
        role, content = _role_and_content(message)
        # Public chat sets are full of empty system messages: they say nothing, and are no fault.
        if role == "system" and content in (None, "", b""):
            continue
        turns.append(Turn(role, _filled(content, "content")))
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers or answers[-1] == 0:
        raise _Refused("messages hold no assistant answer to a prompt")
    before, answer = tuple(turns[: answers[-1]]), turns[answers[-1]]
    if len(before) == 1 and before[0].role == "user":
        return Example(example_id, before[0].content, answer.content, source)
    prompt = "\n\n".join(f"{turn.role}: {turn.content}" for turn in before)
    return Example(example_id, prompt, answer.content, source, before)


def _role_and_content(message: Any) -> tuple[str, Any]:
    """Who speaks, by the names of chat templates, and what is said, as it stands."""
    if isinstance(message, dict) and {"role", "content"} <= message.keys():
        return _filled(message["role"], "role"), message["content"]
    if isinstance(message, dict) and {"from", "value"} <= message.keys():
        speaker = _filled(message["from"], "from")
        return _SHAREGPT_ROLES.get(speaker, speaker), message["value"]
    raise _Refused("a message lacks role and content, or from and value")


def _identifier(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    return _filled(value, "id")


def _filled(value: Any, what: str) -> str:
    text = _text(value, what)
    if not text.strip():
        raise _Refused(f"{what} is empty" if not text else f"{what} is white space only")
    return text


def _text(value: Any, what: str) -> str:
    if isinstance(value, Unreadable):
        raise _Refused(value.reason)
    if value is None:
        raise _Refused(f"{what} is null")
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise _Refused(f"{what} is not UTF-8 text") from None
    if not isinstance(value, str):
        raise _Refused(f"{what} is a {type(value).__name__}, not text")
    return value
