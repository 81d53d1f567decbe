"""JSON Lines files, plain or compressed, read line by line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from influcoder_ray.tables.place import Place

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".jsonl.bz2")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_BLOCK_BYTES = 1 << 20
_LINES_FOR_KEYS = 1000


@dataclass(frozen=True)
class Unreadable:
    """A cell that could not be read, and why."""

    reason: str


def lines(place: Place) -> Iterator[bytes]:
    """The lines of the file without their ends; blank ones count, so that rows keep their numbers."""
    with place.open() as raw:
        stream = _decompressed(place, raw)
        rest: list[bytes] = []
        while block := stream.read(_BLOCK_BYTES):
            first, *others = bytes(block).split(b"\n")
            rest.append(first)
            if others:
                yield b"".join(rest)
                yield from others[:-1]
                rest = [others[-1]]
        if last := b"".join(rest):
            yield last


@dataclass(frozen=True)
class Counted:
    """The rows at a file's beginning, and the bytes that they take as the file lies, compressed or not.

    `whole` says whether that is all of the file.
    """

    rows: int
    size_bytes: int
    whole: bool


def count_rows(place: Place, *, most_bytes: int) -> Counted:
    """Count a file's rows, blank ones among them, up to about `most_bytes` of it."""
    rows, last = 0, b"\n"
    with place.open() as raw:
        stream = _decompressed(place, raw)
        while raw.tell() < most_bytes:
            block = bytes(stream.read(_BLOCK_BYTES))
            if not block:
                # A last line needs no end.
                return Counted(rows + (last != b"\n"), raw.tell(), True)
            rows, last = rows + block.count(b"\n"), block[-1:]
        return Counted(rows, raw.tell(), False)


def parse(line: bytes) -> dict[str, Any] | Unreadable:
    """The object that a line holds, or why it holds none."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError:
        return Unreadable("the line is not UTF-8")
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        return Unreadable(f"the line is not JSON: {str(error).splitlines()[0]}")
    if not isinstance(row, dict):
        return Unreadable(f"the line is a JSON {type(row).__name__}, not an object")
    return row


def first_keys(place: Place) -> tuple[str, ...]:
    """The keys of the first lines, in order; empty where none of them is an object."""
    keys: dict[str, None] = {}
    for number, line in enumerate(lines(place)):
        if number >= _LINES_FOR_KEYS:
            break
        row = parse(line)
        if isinstance(row, dict):
            keys.update(dict.fromkeys(row))
    return tuple(keys)


def _decompressed(place: Place, raw: BinaryIO) -> Any:
    compression = next((kind for end, kind in _COMPRESSIONS.items() if place.uri.endswith(end)), None)
    return pa.CompressedInputStream(raw, compression) if compression else raw
