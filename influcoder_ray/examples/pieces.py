"""A causal LM's tokens as pieces of the texts that they were made of, so that a page can mark them.

Shapes: T tokens of an example.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from influcoder_ray.errors import UserError
from influcoder_ray.examples.example import Example, Turn
from influcoder_ray.examples.tokens import (
    CHARACTERS_PER_TOKEN,
    Tokens,
    head_of,
    prompt_text,
    repeated,
    special_frame,
    turns_of,
)

Part = Literal["prompt", "response", "frame"]

# A stand-in for a message's content: private characters, which no template looks at or strips.
_STAND_IN = "\ue000{}\ue001"


@dataclass(frozen=True)
class Piece:
    """What one token stands for.

    Attributes:
        text: its characters, whether or not the example's own.
        part: which text of the example they belong to; "frame" is what template and tokenizer put around.
        start, end: the characters of `Example.prompt` or `Example.response`, counted from 0, end excluded;
            both 0 of the frame. A character that takes several tokens belongs to each of them.
    """

    text: str
    part: Part
    start: int
    end: int


@dataclass(frozen=True)
class Mark:
    """Some characters of a text, from `start` up to `end`, with a value."""

    start: int
    end: int
    value: float


@dataclass(frozen=True)
class _Stretch:
    """Characters of a rendered prompt that are `length` of the example's own, from `own` on."""

    start: int
    length: int
    own: int


def pieces(
    example: Example,
    tokens: Tokens,
    tokenizer: Any,
    *,
    max_tokens: int,
    template: Literal["chat", "plain"],
) -> list[Piece]:
    """The pieces (T,) of an example's tokens.

    Args:
        tokens: what `loss_tokens` made of the example with the same tokenizer, window and template.

    Raises:
        UserError: the tokenizer cannot tell where its tokens stand in a text.
        ValueError: the tokens are not those of the example.
    """
    if tokens.fault or not tokens.ids:
        return []
    if not tokenizer.is_fast:
        raise UserError(
            "model.path: its tokenizer cannot tell where a token stands in its text; give a folder with "
            "tokenizer.json"
        )
    limit = max_tokens * CHARACTERS_PER_TOKEN
    response = _located(
        example.response[:limit], 0, [_Stretch(0, len(example.response), 0)], "response", tokenizer
    )
    begin, _ = special_frame(tokenizer)
    if example.is_raw_text:
        found = [*_framed(begin, tokenizer), *response]
    else:
        before, _ = prompt_text(example, tokenizer, template)
        shift = max(0, len(before) - limit)
        prompt = _located(
            before[shift:], shift, _stretches(example, before, tokenizer, template), "prompt", tokenizer
        )
        head = head_of(begin, before, tokenizer, template)
        prompt = prompt[repeated(head, [token for token, _ in prompt], template) :]
        # The prompt lost its head, the response its tail: what is left of the prompt are its last tokens.
        room = tokens.labelled_from - len(head) if head or prompt else 0
        found = [*_framed(head, tokenizer), *prompt[len(prompt) - room :], *response]
    found = found[: len(tokens.ids)]
    found += _framed(list(tokens.ids[len(found) :]), tokenizer)
    if tuple(token for token, _ in found) != tokens.ids:
        raise ValueError(f"the tokens are not those of example {example.example_id!r}")
    return [piece for _, piece in found]


def marks(found: Sequence[Piece], values: Sequence[float], part: Part) -> list[Mark]:
    """Stretches of one part's text with the values of the tokens that made them, in order and apart.

    Tokens that share a character make one stretch, whose value is their sum.

    Args:
        found, values: (T,) each.
    """
    stretches: list[Mark] = []
    own = [(p, float(v)) for p, v in zip(found, values, strict=True) if p.part == part and p.end > p.start]
    for piece, value in sorted(own, key=lambda pair: (pair[0].start, pair[0].end)):
        last = stretches[-1] if stretches else None
        if last is not None and piece.start < last.end:
            stretches[-1] = Mark(last.start, max(last.end, piece.end), last.value + value)
        else:
            stretches.append(Mark(piece.start, piece.end, value))
    return stretches


def _located(
    text: str, shift: int, own: Sequence[_Stretch], part: Part, tokenizer: Any
) -> list[tuple[int, Piece]]:
    """The ids and pieces of a text, which begins `shift` characters into a rendered one."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        (token, _piece(text[start:end], start + shift, end + shift, own, part))
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _piece(text: str, start: int, end: int, own: Sequence[_Stretch], part: Part) -> Piece:
    for stretch in own:
        first, last = max(start, stretch.start), min(end, stretch.start + stretch.length)
        if first < last:
            move = stretch.own - stretch.start
            return Piece(text, part, first + move, last + move)
    return Piece(text, "frame", 0, 0)


def _framed(ids: Sequence[int], tokenizer: Any) -> list[tuple[int, Piece]]:
    return [(token, Piece(str(tokenizer.decode([token])), "frame", 0, 0)) for token in ids]


def _stretches(
    example: Example, before: str, tokenizer: Any, template: Literal["chat", "plain"]
) -> list[_Stretch]:
    """Where the prompt's own characters stand in what the model reads before the response.

    The template is filled once more with stand-ins, which shows what it puts between messages. What it has
    changed (beyond stripping) is not found, nor is anything behind it: that counts as frame.
    """
    if template == "plain":
        return [_Stretch(0, len(example.prompt), 0)]
    turns = turns_of(example)
    stand_ins = [_STAND_IN.format(i) for i in range(len(turns))]
    filled = tuple(Turn(t.role, mark) for t, mark in zip(turns, stand_ins, strict=True))
    rest, fault = prompt_text(Example("", "-", "-", "", filled), tokenizer, template)
    if fault:
        return []
    literals = []
    for mark in stand_ins:
        literal, _, rest = rest.partition(mark)
        literals.append(literal)
    literals.append(rest)
    found, own, place = [], 0, len(literals[0])
    if not before.startswith(literals[0]):
        return []
    for turn, behind in zip(turns, literals[1:], strict=True):
        # As `columns` writes messages into the prompt; a lone user's message stands there by itself.
        own += len(f"{turn.role}: ") if example.turns else 0
        forms = (turn.content, turn.content.strip())
        form = next((f for f in forms if before.startswith(f + behind, place)), None)
        if form is None:
            break
        found.append(_Stretch(place, len(form), own + turn.content.index(form)))
        place += len(form) + len(behind)
        own += len(turn.content) + len("\n\n")
    return found
