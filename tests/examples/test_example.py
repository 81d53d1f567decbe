"""Examples: what counts as the same content, and the way into a table and back."""

import unicodedata
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.examples import Example, Turn
from influcoder_ray.examples.example import from_table, to_table
from influcoder_ray.tables import schemas
from influcoder_ray.tables.state import parquet_bytes

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_TURNS = st.lists(st.builds(Turn, _TEXT, _TEXT), max_size=3).map(tuple)
_EXAMPLES = st.builds(Example, _TEXT, _TEXT, _TEXT, _TEXT, _TURNS)


@given(st.lists(_EXAMPLES, max_size=4))
@settings(max_examples=50, deadline=None)
def test_examples_come_back_from_a_table_as_they_were(examples: list[Example]) -> None:
    """Prevents text (null characters, emoji, white space) or turns from changing on disk."""
    table = to_table(examples, ["train"] * len(examples))
    assert table.schema.equals(schemas.EXAMPLES)
    read = pq.read_table(pa.BufferReader(parquet_bytes(table)))
    assert from_table(read) == examples
    assert read["content_hash"].to_pylist() == [e.content_hash for e in examples]


@given(_EXAMPLES, _TEXT, _TEXT, st.sampled_from([" ", "\n", "\t ", "\u00a0", "\r\n\r\n"]))
@settings(max_examples=50, deadline=None)
def test_equal_content_hashes_alike_whatever_its_id_source_white_space_and_composition(
    example: Example, other_id: str, other_source: str, space: str
) -> None:
    """Prevents a copy with another id or line ends from standing in two splits."""

    def respaced(text: str) -> str:
        return space + unicodedata.normalize("NFD", space.join(text.split())) + space

    copy = replace(
        example,
        example_id=other_id,
        source=other_source,
        prompt=respaced(example.prompt),
        response=respaced(example.response),
    )
    assert copy.content_hash == example.content_hash


@given(st.lists(st.text("ab ", max_size=4), min_size=2, max_size=2), st.text("ab ", max_size=4), st.data())
@settings(max_examples=50, deadline=None)
def test_moving_words_between_prompt_and_response_changes_the_content(
    texts: list[str], word: str, data: st.DataObject
) -> None:
    """Prevents a question and answer from being one content with another cut of the same words."""
    joined = " ".join([*texts, word]).split()
    cuts = [data.draw(st.integers(0, len(joined))) for _ in range(2)]
    one, two = (Example("i", " ".join(joined[:cut]), " ".join(joined[cut:]), "f:0") for cut in cuts)
    assert (one.content_hash == two.content_hash) == (cuts[0] == cuts[1])


def test_turns_are_part_of_the_content() -> None:
    """Prevents two chats with one last question and different histories from being one content."""
    plain = Example("i", "user: a", "r", "f:0")
    chat = replace(plain, turns=(Turn("user", "a"),))
    assert (
        len({plain.content_hash, chat.content_hash, replace(chat, turns=(Turn("system", "a"),)).content_hash})
        == 3
    )


def test_the_text_that_a_student_reads_is_prompt_and_response_or_the_raw_text() -> None:
    """Prevents a blank line in front of raw text, and words that run together at the border."""
    assert Example("i", "p", "r", "f:0").text == "p\nr"
    assert Example("i", "", "r", "f:0").text == "r"
