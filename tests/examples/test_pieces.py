"""Every token knows the characters of the example that it stands for."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import build_causal_lm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from influcoder_ray.examples import Example, Turn
from influcoder_ray.examples.pieces import Mark, Piece, marks, pieces
from influcoder_ray.examples.tokens import Template, loss_tokens, resolve_template

BEGINNING = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEXTS = st.text(st.sampled_from("ab é漢🙂\n.,assistant"), min_size=1, max_size=60).filter(str.strip)


def found_pieces(
    example: Example, tokenizer: PreTrainedTokenizerBase, template: Template = "auto", max_tokens: int = 4096
) -> list[Piece]:
    kind = resolve_template(tokenizer, template)
    (tokens,) = loss_tokens([example], tokenizer, max_tokens=max_tokens, template=kind)
    found = pieces(example, tokens, tokenizer, max_tokens=max_tokens, template=kind)
    assert len(found) == len(tokens.ids)
    return found


def characters(found: list[Piece], part: str) -> set[int]:
    return {place for piece in found if piece.part == part for place in range(piece.start, piece.end)}


@pytest.fixture(scope="module")
def trimming(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """A tokenizer whose template writes the beginning itself, and strips what people write."""
    folder = build_causal_lm(tmp_path_factory.mktemp("trimming"), chat_template=BEGINNING)
    return AutoTokenizer.from_pretrained(folder)


@given(TEXTS, TEXTS, st.sampled_from(["chat", "plain"]), st.integers(8, 80))
@settings(max_examples=200, deadline=None)
def test_each_piece_is_the_text_at_its_place_whatever_the_template_and_the_window(
    trimming: PreTrainedTokenizerBase, prompt: str, response: str, template: Template, max_tokens: int
) -> None:
    """Prevents marks on other words than those that carry the influence."""
    example = Example("e", prompt, response, "f:0")
    whole = {"prompt": prompt, "response": response}
    for piece in found_pieces(example, trimming, template, max_tokens):
        if piece.part == "frame":
            assert (piece.start, piece.end) == (0, 0)
        else:
            assert piece.end > piece.start
            assert whole[piece.part][piece.start : piece.end] in piece.text
    found = found_pieces(example, trimming, template)
    kept = prompt.strip() if template == "chat" else prompt
    first = prompt.index(kept)
    assert characters(found, "prompt") == set(range(first, first + len(kept)))
    assert characters(found, "response") == set(range(len(response)))


def test_of_several_messages_each_is_found_in_the_prompt_that_a_person_sees(
    trimming: PreTrainedTokenizerBase,
) -> None:
    """Prevents a second message's marks from landing on the first."""
    turns = (Turn("system", "be short"), Turn("user", " a user "), Turn("assistant", "a"), Turn("user", "a"))
    prompt = "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
    found = found_pieces(Example("e", prompt, "yes", "f:0", turns), trimming)
    shown = "".join(c if i in characters(found, "prompt") else "_" for i, c in enumerate(prompt))
    assert shown == "_" * 8 + "be short" + "_" * 9 + "a user" + "_" * 14 + "a" + "_" * 8 + "a"


def test_raw_text_is_all_response(trimming: PreTrainedTokenizerBase) -> None:
    """Prevents raw text from being looked for in a prompt that is not there."""
    example = Example("e", "", "The capital of France is Paris.", "f:0")
    found = found_pieces(example, trimming)
    assert characters(found, "response") == set(range(len(example.response)))
    assert {piece.part for piece in found} <= {"frame", "response"}


def test_a_template_that_rewrites_a_message_leaves_it_in_the_frame(tmp_path: Path) -> None:
    """Prevents marks at made-up places where a message cannot be found again."""
    shouting = BEGINNING.replace("| trim", "| upper")
    tokenizer = AutoTokenizer.from_pretrained(build_causal_lm(tmp_path, chat_template=shouting))
    found = found_pieces(Example("e", "whisper", "yes", "f:0"), tokenizer)
    assert not characters(found, "prompt")
    assert characters(found, "response") == {0, 1, 2}


def test_other_tokens_are_refused(trimming: PreTrainedTokenizerBase) -> None:
    """Prevents one example's contributions from being shown on another's text."""
    one, other = Example("one", "a", "b", "f:0"), Example("other", "a", "c", "f:1")
    (tokens,) = loss_tokens([one], trimming, max_tokens=64, template="chat")
    with pytest.raises(ValueError, match="other"):
        pieces(other, tokens, trimming, max_tokens=64, template="chat")


def test_marks_are_apart_in_order_and_keep_the_sum() -> None:
    """Prevents a page from opening a mark inside a mark, or losing part of an influence."""
    found = [
        Piece("<s>", "frame", 0, 0),
        Piece("a", "prompt", 0, 1),
        Piece("漢", "response", 2, 3),
        Piece("漢", "response", 2, 3),
        Piece("xy", "response", 0, 2),
        Piece("漢字", "response", 2, 4),
        Piece("", "response", 4, 4),
    ]
    values = [9, 8, 1, 2, 4, 0.5, 7]
    assert marks(found, values, "response") == [Mark(0, 2, 4), Mark(2, 4, 3.5)]
    assert marks(found, values, "prompt") == [Mark(0, 1, 8)]


@given(TEXTS, TEXTS)
@settings(max_examples=50, deadline=None)
def test_marks_of_any_text_are_apart(trimming: PreTrainedTokenizerBase, prompt: str, response: str) -> None:
    """Prevents characters of several tokens from being marked twice."""
    found = found_pieces(Example("e", prompt, response, "f:0"), trimming)
    stretches = marks(found, [1.0] * len(found), "response")
    ends = [0, *(mark.end for mark in stretches)]
    assert all(mark.start >= end for mark, end in zip(stretches, ends, strict=False))
    assert sum(mark.value for mark in stretches) == sum(p.part == "response" for p in found)
