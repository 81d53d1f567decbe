"""One example: the unit of attribution, with its canonical text and content hash."""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa

from influcoder_ray.tables import schemas


@dataclass(frozen=True)
class Turn:
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """A prompt and its response, or raw text (the prompt is empty, the response is the text).

    `source` is "<file>:<row>", so that a person finds the example again. `turns` holds the messages
    before the response where there is more to them than one user's message.
    """

    example_id: str
    prompt: str
    response: str
    source: str
    turns: tuple[Turn, ...] = field(default=())

    @property
    def is_raw_text(self) -> bool:
        return not self.prompt

    @property
    def text(self) -> str:
        """What a person sees."""
        return self.response if self.is_raw_text else f"{self.prompt}\n{self.response}"

    @cached_property
    def content_hash(self) -> str:
        """128 bits of SHA-256 of the canonical text: NFC, runs of white space folded to one space.

        Two examples with equal hashes are one content: they never fall into different splits.
        """
        parts = [*(f"{t.role}\x1e{t.content}" for t in self.turns), self.prompt, self.response]
        canonical = "\x1f".join(" ".join(unicodedata.normalize("NFC", part).split()) for part in parts)
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def to_table(examples: Sequence[Example], splits: Sequence[str]) -> pa.Table:
    """Examples (N,) and the split of each as a table with the schema `EXAMPLES`."""
    rows = [
        {
            "example_id": e.example_id,
            "content_hash": e.content_hash,
            "split": split,
            "prompt": e.prompt,
            "response": e.response,
            "turns": [{"role": t.role, "content": t.content} for t in e.turns] or None,
            "source": e.source,
        }
        for e, split in zip(examples, splits, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=schemas.EXAMPLES)


def from_table(table: pa.Table) -> list[Example]:
    """The examples of a table with the schema `EXAMPLES`, in its order."""
    rows: Iterable[dict[str, object]] = table.select(
        ["example_id", "prompt", "response", "source", "turns"]
    ).to_pylist()
    return [Example(**{**row, "turns": _turns(row["turns"])}) for row in rows]  # type: ignore[arg-type]


def _turns(value: object) -> tuple[Turn, ...]:
    return tuple(Turn(**turn) for turn in value) if isinstance(value, list) else ()
