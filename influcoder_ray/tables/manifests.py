"""What vouches for a unit's files, and how the manifests of a finished stage lie in one file."""

import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

_CODEC = "zstd"
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class CommittedFile:
    """A file that a manifest vouches for; `path` is relative to the output folder.

    `rows_per_group` is the size of a table's row groups, of which the last may be smaller; 0 where the file
    is no table, or where an older version of this package wrote the manifest.
    """

    table: str
    path: str
    rows: int
    size_bytes: int
    sha256: str
    rows_per_group: int = 0

    @property
    def row_groups(self) -> tuple[int, ...] | None:
        """The rows of each row group, told without reading the file's footer; None where that is needed."""
        if not self.rows_per_group:
            return None
        starts = range(0, max(self.rows, 1), self.rows_per_group)
        return tuple(min(self.rows_per_group, self.rows - start) for start in starts)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one unit came to. `counters` are sums over rows (tokens, truncated, ...)."""

    unit_id: str
    rows_in: int
    rows_out: int
    rows_quarantined: int
    seconds: float
    files: tuple[CommittedFile, ...]
    counters: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> bytes:
        # Not `asdict`, which copies every value: a stage is closed with a hundred thousand of these.
        shallow = {name: getattr(self, name) for name in self.__slots__}
        files = [{name: getattr(file, name) for name in file.__slots__} for file in self.files]
        return json.dumps(shallow | {"files": files}, sort_keys=True).encode()

    @staticmethod
    def from_json(data: bytes) -> "Manifest":
        fields = json.loads(data)
        # A driver holds the manifests of a hundred thousand units, which share these few words.
        counters = {sys.intern(name): value for name, value in fields["counters"].items()}
        files = tuple(CommittedFile(**{**f, "table": sys.intern(f["table"])}) for f in fields["files"])
        return Manifest(**{**fields, "counters": counters, "files": files})


def pack(manifests: Iterable[Manifest]) -> bytes:
    """Manifests as one compressed file of JSON lines, in order of unit id, whatever order they come in.

    Those of a million units are half a gigabyte of text, which is never held.
    """
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, _CODEC) as stream:
        for manifest in sorted(manifests, key=lambda m: m.unit_id):
            stream.write(manifest.to_json() + b"\n")
    return bytes(sink.getvalue())


def unpack(data: bytes) -> Iterator[Manifest]:
    """The manifests that `pack` was given, in order of unit id."""
    with pa.CompressedInputStream(pa.BufferReader(data), _CODEC) as stream:
        for line in io.BufferedReader(stream, _BUFFER_BYTES):
            yield Manifest.from_json(line)
