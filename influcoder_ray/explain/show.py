"""An explanation in a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from influcoder_ray.examples.pieces import Mark, Piece, marks
from influcoder_ray.explain.question import Question
from influcoder_ray.report.texts import middle_cut, one_line
from influcoder_ray.report.wording import decimal, percentile

# Characters of a text that are shown.
_SHOWN = 240
# Of an example's id, and of the place where it lies.
_NAME = 60
# Of a marked text, before and behind the strongest mark.
_BEFORE, _BEHIND = 120, 360
_STRONGEST = 6
# By strength, from the weakest that is marked on; told apart by more than colour, see `_strongest`.
_TOWARDS = ("on dark_green", "white on green4", "black on green3")
_AWAY = ("on dark_red", "white on red3", "black on light_coral")
_FAINT = 0.15
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class Explanation:
    """What was found, as `Attributor`'s tables.

    Attributes:
        most, least: the two ends of the corpus by the embeddings.
        reranked: the best in exact order, where that was asked for.
        tokens: of the best shown, where that was asked for.
    """

    question: Question
    most: pa.Table
    least: pa.Table
    reranked: pa.Table | None
    tokens: pa.Table | None


def show(found: Explanation, console: Console) -> None:
    """Print an explanation: what was asked, the most influential examples, the least."""
    about = {key.decode(): value.decode() for key, value in found.most.schema.metadata.items()}
    rows = int(about["rows"])
    _head(found.question, about, console)
    tokens = _by_source(found.tokens)
    if found.reranked is not None:
        _title(f"Most influential of {rows:,} examples, by exact influence", console)
        for row in found.reranked.to_pylist():
            _example(row, tokens.get(row["source"]), console)
    else:
        _title(f"Most influential of {rows:,} examples, by their embeddings", console)
        for row in found.most.to_pylist():
            _example(row, tokens.get(row["source"]), console)
    if found.least.num_rows:
        _title("Least influential, by their embeddings", console)
        for row in reversed(found.least.to_pylist()):
            _example(row, None, console)
    _legend(found, console)


def _head(question: Question, about: Mapping[str, str], console: Console) -> None:
    example = question.example
    if example.is_raw_text:
        _field("text", one_line(example.response, _SHOWN), console)
    else:
        _field("query", one_line(example.prompt, _SHOWN), console)
        _field("response", one_line(example.response, _SHOWN), console)
    own = "its own gradient" if about["vector"] == "gradient" else "its text alone"
    answer = "the response is the model's own answer; " if question.generated else ""
    _field(
        "",
        f"({answer}searched by {own}; familiar to the encoder: {percentile(float(about['familiarity']))}%)",
        console,
        style="dim",
    )


def _title(text: str, console: Console) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _field(name: str, text: str, console: Console, style: str = "") -> None:
    line = Table.grid(padding=(0, 1))
    line.add_column(min_width=8, style="bold")
    line.add_row(name, Text(text, style=style))
    console.print(line)


def _example(row: Mapping[str, Any], tokens: Sequence[Mapping[str, Any]] | None, console: Console) -> None:
    line = Text.assemble((f"{row['rank']:>6,}  ", "bold"), (f"{_signed(row['score']):>6}", "bold"))
    if row["percentile"] is None:
        line.append("  found by its text, not by embeddings")
    else:
        line.append(f"  percentile {percentile(row['percentile'])}")
    if row.get("encoder_rank") is not None:
        line.append(f" ({_signed(row['encoder_score'])}, place {row['encoder_rank']:,}) by embeddings")
    line.append(f"  {middle_cut(row['example_id'], _NAME)}")
    if row["source"] != row["example_id"]:
        line.append(f"  {middle_cut(row['source'], _NAME)}", style="dim")
    if row["unfamiliar"]:
        line.append("  unfamiliar", style="italic")
    console.print(line, soft_wrap=True)
    for part in ("prompt", "response"):
        if row[part]:
            _indented(_marked(row[part], part, tokens), 8, console)
    if tokens:
        _indented(_strongest(tokens), 8, console)


def _marked(text: str, part: Any, tokens: Sequence[Mapping[str, Any]] | None) -> Text:
    """A text on one line, what carries influence marked; around the strongest mark where it is long."""
    if not tokens:
        return Text(one_line(text, _SHOWN), style="" if part == "response" else "dim")
    own = [row for row in tokens if row["side"] == "example"]
    strongest = max(abs(row["contribution"]) for row in own)
    found = marks(_pieces(own), [row["contribution"] for row in own], part)
    # Character for character, so that marks keep their places.
    clean = "".join(character if character.isprintable() else " " for character in text)
    peak = max(found, key=lambda mark: abs(mark.value), default=Mark(0, 0, 0.0))
    first = max(0, peak.start - _BEFORE) if len(text) > _BEFORE + _BEHIND else 0
    last = min(len(text), first + _BEFORE + _BEHIND)
    shown = Text(clean, style="" if part == "response" else "dim")
    for mark in found:
        style = _style(mark.value / strongest if strongest else 0.0)
        if style:
            shown.stylize(style, mark.start, mark.end)
    window = shown[first:last]
    return Text.assemble(_ELLIPSIS if first else "", window, _ELLIPSIS if last < len(text) else "")


def _style(share: float) -> str:
    if abs(share) < _FAINT:
        return ""
    scale = _TOWARDS if share > 0 else _AWAY
    return scale[min(len(scale) - 1, int(abs(share) * len(scale)))]


def _strongest(tokens: Sequence[Mapping[str, Any]]) -> Text:
    """The tokens of example and query that contribute most, with their figures."""
    line = Text()
    for side, name in (("example", "tokens"), ("query", "  of the query")):
        own = sorted(
            (row for row in tokens if row["side"] == side), key=lambda row: -abs(row["contribution"])
        )
        line.append(f"{name}:", style="bold")
        for row in own[:_STRONGEST]:
            # A visible space: tokens differ by it.
            token = "".join(c if c.isprintable() else " " for c in row["token"]).replace(" ", "\N{OPEN BOX}")
            line.append(f" {token} {_signed(row['contribution'])}")
    line.append(f"  of {_signed(tokens[0]['influence'])} in all")
    return line


def _legend(found: Explanation, console: Console) -> None:
    console.print()
    lines = ["Figures are cosines: more is more influence towards the response."]
    about = found.most.schema.metadata
    if b"index" in about:
        lines.append(f"{about[b'index'].decode()} Places are those among what was found.")
    if found.tokens is not None:
        lines.append(
            "Tokens: what the model learns while it stands on each, to predict what follows. They add up "
            "to the exact influence."
        )
    for line in lines:
        console.print(Text(line, style="dim"))


def _by_source(tokens: pa.Table | None) -> dict[str, list[dict[str, Any]]]:
    of_source: dict[str, list[dict[str, Any]]] = {}
    for row in tokens.to_pylist() if tokens is not None else ():
        of_source.setdefault(row["source"], []).append(row)
    return of_source


def _pieces(rows: Sequence[Mapping[str, Any]]) -> list[Piece]:
    return [Piece(row["token"], row["part"], row["start"], row["end"]) for row in rows]


def _signed(value: float | None) -> str:
    text = decimal(value)
    return f"+{text}" if value is not None and value > 0 and not text.startswith("\N{MINUS SIGN}") else text


def _indented(text: Text, left: int, console: Console) -> None:
    console.print(Padding(text, (0, 0, 0, left), expand=False))
