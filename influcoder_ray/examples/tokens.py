"""The tokens of an example with a loss mask, cut to a window in which the response survives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from influcoder_ray.examples.example import Example, Turn

Template = Literal["auto", "chat", "plain"]

# Nothing beyond this many characters a token of window is looked at: a document of megabytes costs
# no more to tokenize than one that just fills the window. Few tokens stand for more than 16.
CHARACTERS_PER_TOKEN = 16
# Of a long text so many are tried first: they fill the window of most, and the rest is never tokenized.
_USUAL_CHARACTERS_PER_TOKEN = 6


@dataclass(frozen=True)
class Tokens:
    """Token ids (T,), of which those from `labelled_from` on carry the loss.

    `truncated` says whether the window left anything out, `fault` why there are no tokens at all.
    """

    ids: tuple[int, ...]
    labelled_from: int
    truncated: bool
    fault: str = ""

    @property
    def labelled(self) -> int:
        """How many tokens carry the loss."""
        return max(0, len(self.ids) - self.labelled_from)


def resolve_template(tokenizer: Any, template: Template) -> Literal["chat", "plain"]:
    """The template to use: "auto" is the tokenizer's own chat template where it has one."""
    if template == "auto":
        return "chat" if getattr(tokenizer, "chat_template", None) else "plain"
    return template


def loss_tokens(
    examples: Sequence[Example], tokenizer: Any, *, max_tokens: int, template: Literal["chat", "plain"]
) -> list[Tokens]:
    """The causal LM's tokens of each example.

    Loss falls on the response and the token that ends it; of raw text on everything that has a
    token before it. Where the window is too small, the response survives and the prompt loses its
    head, but not the token that begins every text; a response longer than the window loses its tail
    and keeps one token of the prompt.
    """
    if not examples:
        return []
    limit = max_tokens * CHARACTERS_PER_TOKEN
    prompts = [prompt_text(e, tokenizer, template) for e in examples]
    prompt_ids = _ids(tokenizer, [text[-limit:] for text, _ in prompts])
    response_ids = _ids(tokenizer, [e.response[:limit] for e in examples])
    begin, _ = special_frame(tokenizer)
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    tokens = []
    for example, (before, fault), prompt, response in zip(
        examples, prompts, prompt_ids, response_ids, strict=True
    ):
        if fault:
            tokens.append(Tokens((), 0, False, fault))
            continue
        cut = len(before) > limit or len(example.response) > limit
        if example.is_raw_text:
            ids = begin + response
            tokens.append(Tokens(tuple(ids[:max_tokens]), max(1, len(begin)), cut or len(ids) > max_tokens))
            continue
        head = head_of(begin, before, tokenizer, template)
        prompt = prompt[repeated(head, prompt, template) :]
        ending = [] if len(example.response) > limit else end
        answer = (response + ending)[: max_tokens - len(head) - bool(prompt)]
        kept = head + prompt[max(0, len(head) + len(prompt) + len(answer) - max_tokens) :]
        cut = cut or len(head) + len(prompt) + len(response) + len(end) > max_tokens
        # A prompt can come to no tokens at all; the first token has none before it to predict it from.
        tokens.append(Tokens(tuple(kept + answer), max(1, len(kept)), cut))
    return tokens


def prompt_tokens(
    example: Example, tokenizer: Any, *, max_tokens: int, template: Literal["chat", "plain"]
) -> Tokens:
    """What a causal LM reads before it answers, as `loss_tokens` puts it; none carries a loss.

    Where the window is too small, the prompt loses its head.
    """
    before, fault = prompt_text(example, tokenizer, template)
    if fault:
        return Tokens((), 0, False, fault)
    limit = max_tokens * CHARACTERS_PER_TOKEN
    (prompt,) = _ids(tokenizer, [before[-limit:]])
    head = head_of(special_frame(tokenizer)[0], before, tokenizer, template)
    prompt = prompt[repeated(head, prompt, template) :]
    kept = head + prompt[max(0, len(head) + len(prompt) - max_tokens) :]
    cut = len(before) > limit or len(kept) < len(head) + len(prompt)
    return Tokens(tuple(kept), len(kept), cut)


def text_window(
    examples: Sequence[Example], tokenizer: Any, *, max_tokens: int, separator: str | None = None
) -> tuple[list[list[int]], list[bool]]:
    """The student's tokens of each example with the tokenizer's special tokens, and whether cut.

    Uncut, they are the tokenizer's own of `student_text`. The same rule as the teacher's: the response
    survives and the prompt loses its head; raw text and a response that alone fills the window lose
    their tail.
    """
    found, cuts = text_windows(examples, tokenizer, max_tokens=max_tokens, separator=separator, most=1)
    return [first for (first,) in found], cuts


def text_windows(
    examples: Sequence[Example], tokenizer: Any, *, max_tokens: int, separator: str | None = None, most: int
) -> tuple[list[list[list[int]]], list[bool]]:
    """As `text_window`, the tail too: what is left of a text goes into further windows, `most` in all.

    They follow each other without overlap. A prompt stands in the first alone, and a text counts as cut where
    its prompt lost its head or where even so many windows do not hold its tail.
    """
    if not examples:
        return [], []
    limit = max_tokens * CHARACTERS_PER_TOKEN
    between = separator_of(tokenizer, separator)
    begin, end = special_frame(tokenizer)
    room = max_tokens - len(begin) - len(end)
    texts, starts, cuts = [], [], []
    for example in examples:
        prompt = "" if example.is_raw_text else example.prompt[-limit:] + between
        texts.append(prompt + example.response[: most * limit])
        starts.append(len(prompt))
        cuts.append(len(example.response) > most * limit or len(example.prompt) > limit)
    # Further windows reach the end of most texts.
    tokens = _opening_ids(tokenizer, texts, starts, room) if most == 1 else _ids(tokenizer, texts)
    long = [row for row, ids in enumerate(tokens) if len(ids) > room]
    # Where the response begins is asked of few: offsets of all would take longer than their tokens.
    answers = _first_tokens(tokenizer, [(texts[row], starts[row]) for row in long if starts[row]])
    parts = [[ids] for ids in tokens]
    for row in long:
        ids = tokens[row]
        first = min(next(answers), len(ids) - room) if starts[row] else 0
        stop = min(len(ids), first + most * room)
        parts[row] = [ids[at : min(at + room, stop)] for at in range(first, stop, room)]
        cuts[row] = cuts[row] or first > 0 or stop < len(ids)
    return [[begin + ids + end for ids in windows] for windows in parts], cuts


def student_text(example: Example, tokenizer: Any, separator: str | None = None) -> str:
    """What the student reads of an example: prompt, separator, response; raw text as it is.

    Args:
        separator: the tokenizer's own if None: the loss falls behind it alone, so it has to be seen, and
            many tokenizers drop line breaks.
    """
    prompt = "" if example.is_raw_text else example.prompt + separator_of(tokenizer, separator)
    return prompt + example.response


def separator_of(tokenizer: Any, separator: str | None) -> str:
    """What stands between prompt and response: as set, else the tokenizer's separator or end of text."""
    return separator if separator is not None else str(tokenizer.sep_token or tokenizer.eos_token or "\n")


def special_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed: list[int] = tokenizer("a")["input_ids"]
    first = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
    return framed[:first], framed[first + len(bare) :]


def head_of(
    begin: list[int], prompt_text: str, tokenizer: Any, template: Literal["chat", "plain"]
) -> list[int]:
    """The tokens that stand before a prompt, and survive when it loses its head.

    Args:
        begin: what the tokenizer puts before a text.
        prompt_text: the whole prompt as the model reads it.
    """
    if template == "plain":
        return begin
    # A chat template writes what begins every text itself.
    begun = bool(tokenizer.bos_token) and prompt_text.startswith(tokenizer.bos_token)
    return [tokenizer.bos_token_id] if begun else []


def repeated(head: list[int], prompt: list[int], template: Literal["chat", "plain"]) -> int:
    """How many of the prompt's first tokens are those of `head` once more: the chat template's own."""
    return int(template == "chat" and bool(head) and prompt[:1] == head)


def turns_of(example: Example) -> tuple[Turn, ...]:
    """The messages that a chat template is given before the response."""
    return example.turns or (Turn("user", example.prompt),)


def prompt_text(example: Example, tokenizer: Any, template: Literal["chat", "plain"]) -> tuple[str, str]:
    """What stands before the response, or, second, why the template has no words for it."""
    if example.is_raw_text:
        return "", ""
    if template == "plain":
        return f"{example.prompt}\n", ""
    turns = [{"role": t.role, "content": t.content} for t in turns_of(example)]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)), ""
    except TemplateError as error:
        # Some templates refuse a system message, or turns that do not alternate.
        return "", f"the chat template refuses it: {str(error).splitlines()[0]}"


def _opening_ids(tokenizer: Any, texts: Sequence[str], starts: Sequence[int], enough: int) -> list[list[int]]:
    """Token ids of each text; of a long one that has no prompt its first ones, more than `enough`.

    It is cut where a space begins, behind which tokenizers begin anew.
    """
    characters = enough * _USUAL_CHARACTERS_PER_TOKEN
    openings = [
        text[:characters].rpartition(" ")[0].rstrip() if start == 0 and len(text) > characters else ""
        for text, start in zip(texts, starts, strict=True)
    ]
    found = _ids(tokenizer, [opening or text for opening, text in zip(openings, texts, strict=True)])
    short = [row for row, opening in enumerate(openings) if opening and len(found[row]) <= enough]
    for row, ids in zip(short, _ids(tokenizer, [texts[row] for row in short]), strict=True):
        found[row] = ids
    return found


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text without special tokens; nothing else is asked for, which takes its time."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return ids


def _first_tokens(tokenizer: Any, texts: Sequence[tuple[str, int]]) -> Iterator[int]:
    """Of each text and a place in it, how many of its tokens end at or before that place."""
    if not texts:
        return
    found = tokenizer(
        [text for text, _ in texts], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    for (_, start), offsets in zip(texts, found, strict=True):
        yield next((token for token, (_, stop) in enumerate(offsets) if stop > start), len(offsets))
