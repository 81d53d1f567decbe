"""JSON Lines files, plain or compressed, read line by line."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa

from influcoder_ray.tables.fields import ABSENT, value_at
from influcoder_ray.tables.place import Place

PLAIN_SUFFIXES = (".jsonl", ".ndjson")
# Web corpora also call compressed lines .json.gz; a plain .json is one document, more often than not.
SUFFIXES = (
    *PLAIN_SUFFIXES,
    *(f"{stem}.{packing}" for stem in (".jsonl", ".json") for packing in ("gz", "zst", "bz2")),
)
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_READ_BYTES = 1 << 20
# How much longer English text in JSON is than compressed, about.
_COMPRESSION = 3
# Of text, that stand together in a block: enough to be worth a seek, and little beside a worker's memory.
BLOCK_BYTES = 8 << 20
# By which a file's columns are told.
_FIRST_LINES = 1000
# Python counts True as a number: it is asked for first.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "null": type(None),
    "boolean": bool,
    "number": (int, float),
    "text": str,
    "list": list,
    "object": dict,
}


@dataclass(frozen=True)
class Unreadable:
    """A cell that could not be read, and why."""

    reason: str


# The first byte of some lines in a file's text, decompressed, and the one after their last.
Span = tuple[int, int]


def lines(place: Place, span: Span | None = None) -> Iterator[bytes]:
    """The lines of the file without their ends; blank ones count, so that rows keep their numbers.

    Args:
        span: of whole lines, to read these alone. What stands before them in a compressed file has to be
            decompressed, though not parsed.
    """
    with place.open() as raw:
        stream = _decompressed(place, raw)
        if span is None:
            left = None
        else:
            _skip(stream, span[0], seekable=stream is raw)
            left = span[1] - span[0]
        rest: list[bytes] = []
        while block := stream.read(_READ_BYTES if left is None else min(left, _READ_BYTES)):
            left = None if left is None else left - len(block)
            first, *others = bytes(block).split(b"\n")
            rest.append(first)
            if others:
                yield b"".join(rest)
                yield from others[:-1]
                rest = [others[-1]]
        if last := b"".join(rest):
            yield last


@dataclass(frozen=True)
class LineBlock:
    """Lines that stand together: the row that the first one is, and where they lie in the file's text."""

    first_row: int
    lines: list[bytes]
    span: Span


def line_blocks(
    place: Place, span: Span | None = None, *, first_row: int = 0, block_bytes: int | None = None
) -> Iterator[LineBlock]:
    """The lines of a file, or of a span of it, in blocks of at least `block_bytes` of text but for the last.

    Args:
        first_row: the row that the first line is.
        block_bytes: `BLOCK_BYTES` if None.
    """
    least = BLOCK_BYTES if block_bytes is None else block_bytes
    start = end = 0 if span is None else span[0]
    held: list[bytes] = []
    for line in lines(place, span):
        held.append(line)
        # With its end, which the last line of a file may lack: nothing begins behind that.
        end += len(line) + 1
        if end - start >= least:
            yield LineBlock(first_row, held, (start, end))
            start, first_row, held = end, first_row + len(held), []
    if held:
        yield LineBlock(first_row, held, (start, end))


@dataclass(frozen=True)
class Counted:
    """The rows at a file's beginning, and the bytes that they take as the file lies, compressed or not.

    `whole` says whether that is all of the file.
    """

    rows: int
    size_bytes: int
    whole: bool


def text_bytes(name: str, size_bytes: int) -> int:
    """About how long the text of a file of this name is, which may be compressed."""
    return size_bytes * (1 if name.endswith(PLAIN_SUFFIXES) else _COMPRESSION)


def count_rows(place: Place, *, most_bytes: int) -> Counted:
    """Count a file's rows, blank ones among them, up to about `most_bytes` of it."""
    rows, last = 0, b"\n"
    with place.open() as raw:
        stream = _decompressed(place, raw)
        while raw.tell() < most_bytes:
            block = bytes(stream.read(_READ_BYTES))
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
    # In whatever column it stands: no table could hold the row, so no stage may count on it.
    if (rb"\ud" in line or rb"\uD" in line) and not _is_unicode(row):
        return Unreadable("the line holds a lone surrogate, which is no Unicode text")
    return row


def first_keys(place: Place, fields: Collection[str] = ()) -> tuple[tuple[str, ...], dict[str, set[str]]]:
    """The keys of the first lines, in order, and the kinds of values that they have in named fields.

    Both are empty where no line is an object; a field that no line has is not among the kinds.
    """
    keys: dict[str, None] = {}
    kinds: dict[str, set[str]] = defaultdict(set)
    for line in islice(lines(place), _FIRST_LINES):
        row = parse(line)
        if isinstance(row, dict):
            keys |= dict.fromkeys(row)
            for name in fields:
                value = value_at(row, name, ABSENT)
                if value is not ABSENT:
                    kinds[name].add(kind_of(value))
    return tuple(keys), dict(kinds)


def kind_of(value: Any) -> str:
    """What a value of a line is: text, number, boolean, list, object, or null."""
    return next(kind for kind, types in _KINDS.items() if isinstance(value, types))


def _is_unicode(row: dict[str, Any]) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _skip(stream: Any, count: int, *, seekable: bool) -> None:
    if seekable:
        stream.seek(count)
        return
    while count and (block := stream.read(min(count, _READ_BYTES))):
        count -= len(block)


def _decompressed(place: Place, raw: BinaryIO) -> Any:
    compression = next((kind for end, kind in _COMPRESSIONS.items() if place.uri.endswith(end)), None)
    return pa.CompressedInputStream(raw, compression) if compression else raw
