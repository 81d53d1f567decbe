"""What a person sees in a terminal is what was found, mark for mark and figure for figure."""

import io
import re
from typing import Any

import pyarrow as pa
from rich.console import Console

from influcoder_ray.examples import Example
from influcoder_ray.explain.question import Question
from influcoder_ray.explain.show import Explanation, show
from influcoder_ray.explain.tables import ATTRIBUTED, RERANKED, TOKENS

MARKUP = "use [bold]x[/bold] and \x1b[31mred\x1b[0m\u202e"
ABOUT = {
    "prompt": "p",
    "response": "r",
    "generated": "false",
    "vector": "text",
    "familiarity": "61.2",
    "rows": "1200",
}


def row(name: str, rank: int, score: float | None, response: str, **more: Any) -> dict[str, Any]:
    place = {"example_id": name, "source": f"c.parquet:{rank}", "familiarity": 50.0, "unfamiliar": rank == 2}
    texts = {"prompt": f"prompt of {name}", "response": response}
    return {"rank": rank, "score": score, "percentile": 100 - rank / 12, **place, **texts, **more}


def tokens_of(name: str, source: str, text: str, words: dict[str, float]) -> list[dict[str, Any]]:
    """A token for each of some words of a response, and one of the query."""
    held = {"example_id": name, "source": source, "influence": sum(words.values())}
    rows = [
        {
            "token": w,
            "part": "response",
            "start": text.index(w),
            "end": text.index(w) + len(w),
            "contribution": v,
        }
        for w, v in words.items()
    ]
    asked = {"token": "r", "part": "response", "start": 0, "end": 1, "contribution": sum(words.values())}
    sides = [("example", rows), ("query", [asked])]
    return [
        {**held, "side": side, "position": position, **cells}
        for side, group in sides
        for position, cells in enumerate(group)
    ]


def shown(found: Explanation, *, colours: bool = False) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, width=120, force_terminal=colours, color_system="truecolor" if colours else None
    )
    show(found, console)
    return stream.getvalue()


def explanation(
    most: list[dict[str, Any]],
    least: list[dict[str, Any]],
    reranked: list[dict[str, Any]] | None = None,
    tokens: list[dict[str, Any]] | None = None,
) -> Explanation:
    def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
        return pa.Table.from_pylist(rows, schema=schema.with_metadata(ABOUT))

    return Explanation(
        Question(Example("query", "what is asked", "what is said", "")),
        table(most, ATTRIBUTED),
        table(least, ATTRIBUTED),
        None if reranked is None else table(reranked, RERANKED),
        None if tokens is None else table(tokens, TOKENS),
    )


def test_both_ends_are_shown_with_place_figure_and_text() -> None:
    """Prevents a list whose figures belong to other examples, or a least influential one that comes last."""
    most = [row("a", 1, 0.412, "first"), row("b", 2, -0.0004, "second")]
    least = [row("y", 1199, -0.2, "last but one"), row("z", 1200, -0.31, "last of all")]
    text = shown(explanation(most, least))
    for part in ("what is asked", "what is said", "its text alone", "61.2%", "1,200 examples"):
        assert part in text
    assert re.search(r"1  \+0\.412  percentile 99\.91  a  c\.parquet:1\n\s+prompt of a\n\s+first", text)
    assert re.search(r"2   0\.000  .*unfamiliar\n\s+prompt of b\n\s+second", text)
    assert text.index("last of all") < text.index("last but one")
    assert "\N{MINUS SIGN}0.310" in text


def test_exact_order_is_shown_beside_the_encoders_and_a_missing_gradient_as_a_dash() -> None:
    """Prevents an exact figure from being taken for the encoder's, or none for zero."""
    more = {"encoder_rank": 7, "encoder_score": 0.25}
    exact = [row("a", 1, 0.5, "first", **more), row("b", 2, None, "second", **more)]
    text = shown(explanation([row("c", 1, 0.9, "third")], [], exact))
    assert "by exact influence" in text
    assert "third" not in text
    assert re.search(r"1  \+0\.500  percentile \S+ \(\+0\.250, place 7\) by embeddings  a", text)
    assert re.search(r"2       \N{EN DASH}  percentile", text)


def test_marks_stand_on_the_tokens_that_carry_the_influence() -> None:
    """Prevents colours one character off, and a meaning that colours alone carry."""
    long = "filler " * 100 + "Paris shines, not London"
    words = {"Paris": 0.3, "London": -0.2, "filler": 0.001}
    found = explanation([row("a", 1, 0.1, long)], [], tokens=tokens_of("a", "c.parquet:1", long, words))
    coloured = shown(found, colours=True)
    marked = re.findall(r"\x1b\[[0-9;]*48;5;([0-9]+)m([^\x1b]+)\x1b", coloured)
    assert [text for _, text in marked] == ["Paris", "London"]
    assert len({colour for colour, _ in marked}) == 2
    plain = shown(found)
    assert "tokens: Paris +0.300 London \N{MINUS SIGN}0.200 filler +0.001  of the query: r +0.101" in plain
    assert plain.count("filler") < 30
    assert "of +0.101 in all" in " ".join(plain.split())


def test_other_peoples_texts_neither_colour_nor_turn_the_terminal() -> None:
    """Prevents a corpus from writing commands into the terminal of whoever reads it."""
    tokens = tokens_of("a", "c.parquet:1", MARKUP, {"use": 0.1})
    for given in (None, tokens):
        named = row("a", 1, 0.1, MARKUP) | {"example_id": "a\x1b[31m"}
        text = shown(explanation([named], [], tokens=given))
        assert "use [bold]x[/bold] and" in text
        assert "\x1b" not in text
        assert "\u202e" not in text
