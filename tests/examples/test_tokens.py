"""Token windows: the response survives, and the loss falls on it alone."""

from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from influcoder_ray.examples import Example, Turn
from influcoder_ray.examples.tokens import (
    CHARACTERS_PER_TOKEN,
    Tokens,
    loss_tokens,
    resolve_template,
    student_text,
    text_window,
    text_windows,
)

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["[UNK]", "<s>", "</s>", "<user>", "<system>", "<assistant>"]
VOCABULARY = {word: number for number, word in enumerate([*SPECIAL, "\n", *WORDS])}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def _tokenizer(framed: bool, chat: bool) -> Any:
    """One token a word or line end; `framed`: with special tokens at both ends and one between, as BERT's."""
    inner = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    splits = [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    inner.pre_tokenizer = pre_tokenizers.Sequence(splits)
    if framed:
        special = [(name, VOCABULARY[name]) for name in ("<s>", "</s>")]
        inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>" if framed else None,
        additional_special_tokens=["<user>", "<system>", "<assistant>"],
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


TEACHER, CHATTING, STUDENT = _tokenizer(False, False), _tokenizer(False, True), _tokenizer(True, False)
BOS, EOS, LINE = VOCABULARY["<s>"], VOCABULARY["</s>"], VOCABULARY["\n"]

# No word stands twice in an example, so a window that is off by one token never looks right.
_PROMPT = st.integers(1, 12).map(lambda count: " ".join(WORDS[:count]))
_RESPONSE = st.integers(1, 12).map(lambda count: " ".join(WORDS[20 : 20 + count]))


def _ids(text: str) -> list[int]:
    return [VOCABULARY[word] for word in text.split()]


def _one(example: Example, max_tokens: int, template: Literal["chat", "plain"] = "plain") -> Tokens:
    (tokens,) = loss_tokens([example], CHATTING, max_tokens=max_tokens, template=template)
    return tokens


@given(_PROMPT, _RESPONSE, st.integers(3, 30), st.sampled_from(["plain", "chat"]))
@settings(max_examples=50, deadline=None)
def test_the_response_survives_and_the_prompt_loses_its_head(
    prompt: str, response: str, max_tokens: int, template: Literal["chat", "plain"]
) -> None:
    """Prevents the loss from falling on the prompt, missing the answer's end, or having no context.

    The token that begins every text stays: models that were trained with it go astray without.
    """
    asked = [VOCABULARY["<user>"], *_ids(prompt), VOCABULARY["<assistant>"]]
    before = asked if template == "chat" else [*_ids(prompt), LINE]
    head = [BOS] if template == "chat" else []
    answer = [*_ids(response), EOS]
    tokens = _one(Example("i", prompt, response, "f:0"), max_tokens, template)
    labelled = list(tokens.ids[tokens.labelled_from :])
    context = list(tokens.ids[: tokens.labelled_from])
    assert labelled == answer[: max_tokens - len(head) - 1]
    assert context == head + before[-max(1, max_tokens - len(head) - len(answer)) :]
    assert tokens.labelled == len(labelled)
    assert len(tokens.ids) <= max_tokens
    assert tokens.truncated == (len(head) + len(before) + len(answer) > max_tokens)


def test_texts_begin_as_the_tokenizer_begins_them() -> None:
    """Prevents other numbers than the model's usual input gives: with its first token, or without."""
    pair, raw = Example("i", "w1 w2 w3", "w4", "f:0"), Example("j", "", "w5 w6", "f:1")
    framed, bare = (loss_tokens([pair, raw], t, max_tokens=5, template="plain") for t in (STUDENT, TEACHER))
    assert framed == [
        Tokens((BOS, *_ids("w3"), LINE, *_ids("w4"), EOS), 3, True),
        Tokens((BOS, *_ids("w5 w6")), 1, False),
    ]
    assert bare == [
        Tokens((*_ids("w2 w3"), LINE, *_ids("w4"), EOS), 3, True),
        Tokens(tuple(_ids("w5 w6")), 1, False),
    ]


def test_what_the_chat_template_refuses_is_named_and_its_neighbours_are_not_harmed() -> None:
    """Prevents one conversation that a template cannot write from failing its whole unit."""
    strict = _tokenizer(False, True)
    strict.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + CHAT_TEMPLATE
    )
    refused = Example("i", "system: w1", "w5", "f:0", (Turn("system", "w1"), Turn("user", "w2")))
    good = Example("j", "w1", "w2", "f:1")
    first, second = loss_tokens([refused, good], strict, max_tokens=20, template="chat")
    assert first.fault == "the chat template refuses it: System role not supported"
    assert first.labelled == 0
    assert second == _one(good, 20, "chat")


@given(_RESPONSE, st.integers(2, 16))
@settings(max_examples=50, deadline=None)
def test_raw_text_is_labelled_from_its_second_token_on_and_loses_its_tail(text: str, max_tokens: int) -> None:
    """Prevents a label on a token that nothing precedes."""
    tokens = _one(Example("i", "", text, "f:0"), max_tokens)
    assert list(tokens.ids) == _ids(text)[:max_tokens]
    assert tokens.labelled_from == 1
    assert tokens.labelled == len(tokens.ids) - 1
    assert tokens.truncated == (len(_ids(text)) > max_tokens)


def test_a_response_above_the_window_keeps_one_token_of_its_prompt() -> None:
    """Prevents the first token of a long response from losing the token that predicts it."""
    tokens = _one(Example("i", "w1 w2", "w3 w4 w5 w6", "f:0"), 3)
    assert tokens == Tokens((LINE, *_ids("w3 w4")), 1, True)


def test_turns_go_through_the_chat_template_with_their_roles() -> None:
    """Prevents a system message from reaching the model as the words of a user."""
    turns = (Turn("system", "w1"), Turn("user", "w2"), Turn("assistant", "w3"), Turn("user", "w4"))
    tokens = _one(Example("i", "system: w1", "w5", "f:0", turns), 30, "chat")
    written = "<s> <system> w1 <user> w2 <assistant> w3 <user> w4 <assistant> w5 </s>"
    assert list(tokens.ids) == _ids(written)
    assert tokens.labelled_from == 10
    assert not tokens.truncated


def test_a_prompt_that_comes_to_no_tokens_leaves_no_label_on_the_first_token() -> None:
    """Prevents a label without a token before it, which shifts every label of the row."""
    bare = _tokenizer(False, False)
    bare.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tokens,) = loss_tokens([Example("i", " ", "w1 w2", "f:0")], bare, max_tokens=8, template="plain")
    assert tokens == Tokens((*_ids("w1 w2"), EOS), 1, False)
    bare.bos_token = None
    (tokens,) = loss_tokens([Example("i", "", " ", "f:0")], bare, max_tokens=8, template="plain")
    assert (tokens.ids, tokens.labelled) == ((), 0)


def test_a_document_of_megabytes_is_cut_before_it_is_tokenized_and_has_no_end_token() -> None:
    """Prevents minutes of tokenizing for one window, and an end token where the text does not end."""
    limit = 8 * CHARACTERS_PER_TOKEN
    seen: list[str] = []

    def spy(texts: list[str] | str, **options: Any) -> Any:
        seen.extend([texts] if isinstance(texts, str) else texts)
        return TEACHER(texts, **options)

    spy.bos_token_id, spy.eos_token_id = BOS, EOS  # type: ignore[attr-defined]
    head = "w1 " + "w2" + "x" * 5_000_000
    tail = "x" * 5_000_000 + " w3 w4"
    cut_response, cut_prompt = loss_tokens(
        [Example("i", "w0", head, "f:0"), Example("j", tail, "w5", "f:1")],
        spy,
        max_tokens=8,
        template="plain",
    )
    assert max(len(text) for text in seen) <= limit
    unknown = VOCABULARY["[UNK]"]
    assert cut_response == Tokens((*_ids("w0"), LINE, *_ids("w1"), unknown), 2, True)
    assert cut_prompt == Tokens((unknown, *_ids("w3 w4"), LINE, *_ids("w5"), EOS), 4, True)


def test_the_template_is_the_tokenizers_own_where_it_has_one() -> None:
    """Prevents an instruction model from being read without its chat format, and a base model with one."""
    assert resolve_template(CHATTING, "auto") == "chat"
    assert resolve_template(TEACHER, "auto") == "plain"
    assert resolve_template(CHATTING, "plain") == "plain"
    assert resolve_template(TEACHER, "chat") == "chat"


def test_no_examples_give_no_tokens() -> None:
    """Prevents a unit in which every row was set aside from crashing the tokenizer."""
    assert loss_tokens([], TEACHER, max_tokens=8, template="plain") == []
    assert text_window([], STUDENT, max_tokens=8) == ([], [])


@given(st.just("") | _PROMPT, _RESPONSE, st.booleans())
@settings(max_examples=50, deadline=None)
def test_an_uncut_text_window_is_the_tokenizers_own_encoding(
    prompt: str, response: str, framed: bool
) -> None:
    """Prevents our vectors from differing from those of other programs that load the encoder."""
    tokenizer = STUDENT if framed else TEACHER
    example = Example("i", prompt, response, "f:0")
    windows, cut = text_window([example], tokenizer, max_tokens=64)
    assert windows == [tokenizer(student_text(example, tokenizer))["input_ids"]]
    assert cut == [False]


@given(st.just("") | _PROMPT, _RESPONSE, st.integers(3, 20), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_text_window_keeps_the_limit_the_special_tokens_and_the_response(
    prompt: str, response: str, max_tokens: int, framed: bool
) -> None:
    """Prevents a student that reads less of the answer than the teacher that it learns from."""
    tokenizer = STUDENT if framed else TEACHER
    begin, end = ([BOS], [EOS]) if framed else ([], [])
    before = [*_ids(prompt), EOS] if prompt else []
    answer = _ids(response)
    (window,), (cut,) = text_window([Example("i", prompt, response, "f:0")], tokenizer, max_tokens=max_tokens)
    room = max_tokens - len(begin) - len(end)
    body = answer[:room] if len(answer) >= room else (before + answer)[-room:]
    assert window == [*begin, *body, *end]
    assert cut == (len(before) + len(answer) > room)


@given(st.just("") | _PROMPT, _RESPONSE, st.integers(4, 12), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_windows_follow_each_other_until_the_text_or_their_number_ends(
    prompt: str, response: str, max_tokens: int, most: int
) -> None:
    """Prevents a part of a long document from being read twice, or dropped without being counted."""
    example = Example("i", prompt, response, "f:0")
    (windows,), (cut,) = text_windows([example], STUDENT, max_tokens=max_tokens, most=most)
    ((first,), (first_cut,)) = text_window([example], STUDENT, max_tokens=max_tokens)
    assert windows[0] == first
    assert len(windows) <= most
    assert all((w[0], w[-1]) == (BOS, EOS) and len(w) <= max_tokens for w in windows)
    assert all(len(w) == max_tokens for w in windows[:-1])
    body = [token for window in windows for token in window[1:-1]]
    whole = [*([*_ids(prompt), EOS] if prompt else []), *_ids(response)]
    start = next(i for i in range(len(whole) + 1) if whole[i : i + len(body)] == body)
    if not cut:
        assert body == whole
    elif most == 1:
        assert first_cut
    else:
        # Nothing is dropped but a prompt's head, and a tail for which there are not windows enough.
        assert start > 0 or len(windows) == most


def test_text_windows_do_not_depend_on_their_neighbours() -> None:
    """Prevents padding or truncation left in a saved tokenizer from reaching other rows' windows."""
    tokenizer = _tokenizer(True, False)
    tokenizer.pad_token = "</s>"
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(pad_id=EOS, pad_token="</s>")
    rows = [
        Example("i", "w1", "w2 w3 w4 w5 w6", "f:0"),
        Example("j", "", "w7", "f:1"),
        Example("k", "w8", "w9", "f:2"),
    ]
    windows, cut = text_window(rows, tokenizer, max_tokens=16)
    assert windows == [window for row in rows for window in text_window([row], STUDENT, max_tokens=16)[0]]
    assert cut == [False] * 3


@pytest.mark.parametrize("side", ["prompt", "response"])
@pytest.mark.parametrize("long", ["w1 " * 100_000, "x" * 1_000_000])
def test_a_text_window_of_megabytes_is_marked_as_cut(side: str, long: str) -> None:
    """Prevents text that was dropped before tokenizing, even out of one word, from counting as seen."""
    example = Example("i", long, "w2", "f:0") if side == "prompt" else Example("i", "w2", long, "f:0")
    (window,), cut = text_window([example], STUDENT, max_tokens=8)
    assert cut == [True]
    assert len(window) <= 8
    word = VOCABULARY["w1"] if long.startswith("w1") else VOCABULARY["[UNK]"]
    assert window[-2] == (VOCABULARY["w2"] if side == "prompt" else word)


_PIECES = ["a", "w1", " ", "  ", "\n", " \n ", "it's", "4096", "é", "漢字", "x" * 40, "...", "🙂", "\t"]


@given(st.lists(st.sampled_from(_PIECES), min_size=30, max_size=120).map("".join), st.integers(4, 12))
@settings(max_examples=200, deadline=None)
def test_a_long_text_has_the_window_that_all_its_tokens_give(
    encoder_folder: Path, text: str, max_tokens: int
) -> None:
    """Prevents a text that is tokenized in part from having another token where that part ends."""
    tokenizer = _of(encoder_folder)
    room, limit = max_tokens - 2, max_tokens * CHARACTERS_PER_TOKEN
    (window,), (cut,) = text_window([Example("i", "", text, "f:0")], tokenizer, max_tokens=max_tokens)
    whole = tokenizer(text[:limit], add_special_tokens=False)["input_ids"]
    assert window == [tokenizer.cls_token_id, *whole[:room], tokenizer.sep_token_id]
    assert cut == (len(whole) > room or len(text) > limit)


@cache
def _of(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)
