"""What is asked: an answer to explain, given or the model's own."""

from dataclasses import dataclass

from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example

_ID = "query"


@dataclass(frozen=True)
class Question:
    """A prompt with the response to explain, or raw text.

    Attributes:
        example: as the corpus's examples are; the loss falls on its response.
        generated: whether the response is the model's own answer.
    """

    example: Example
    generated: bool = False


def asked(prompt: str, response: str) -> Question:
    """A prompt and a response to explain.

    Raises:
        UserError: either is empty or no text.
    """
    return Question(Example(_ID, _filled(prompt, "query"), _filled(response, "response"), ""))


def unanswered(prompt: str) -> Example:
    """A prompt whose response is not known yet.

    Raises:
        UserError: it is empty or no text.
    """
    return Example(_ID, _filled(prompt, "query"), "", "")


def asked_text(text: str) -> Question:
    """Raw text to explain; the loss falls on all of it.

    Raises:
        UserError: it is empty or no text.
    """
    return Question(Example(_ID, "", _filled(text, "text"), ""))


def _filled(text: str, what: str) -> str:
    if not text.strip():
        raise UserError(f"{what}: is empty; give some text")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise UserError(f"{what}: holds bytes that are no UTF-8 text; give text")
    return text
