"""A fingerprint: everything that changes a table's numbers, readable and as a hash."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from influcoder_ray.errors import UserError
from influcoder_ray.tables.place import Place

_WHOLE_BYTES = 64 << 20
_SAMPLE_BYTES = 1 << 20
_SAMPLES = 64


@dataclass(frozen=True)
class Fingerprint:
    """The fields that decide a stage's numbers, as nested JSON values."""

    fields: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """128 bits of SHA-256 of the canonical JSON, in hexadecimal."""
        return digest_of(self.fields)

    def to_json(self) -> bytes:
        return json.dumps({"digest": self.digest, "fields": self.fields}, indent=2, sort_keys=True).encode()

    @staticmethod
    def from_json(data: bytes) -> "Fingerprint":
        return Fingerprint(json.loads(data)["fields"])

    def differences(self, other: "Fingerprint", apart_from: Collection[str] = ()) -> list[str]:
        """The dotted fields in which `other` differs, as "name is THERE there and HERE here".

        Args:
            apart_from: dotted fields that are not looked at.
        """
        here, there = dict(_flatten(self.fields)), dict(_flatten(other.fields))
        return [
            f"{name} is {_short(there.get(name, 'absent'))} there and {_short(here.get(name, 'absent'))} here"
            for name in self.differing(other)
            if name not in apart_from
        ]

    def differing(self, other: "Fingerprint") -> list[str]:
        """The dotted fields in which `other` differs, in order."""
        here, there = dict(_flatten(self.fields)), dict(_flatten(other.fields))
        return [name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]


def digest_of(value: Any) -> str:
    """128 bits of SHA-256 of a JSON value's canonical form, in hexadecimal."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def file_identity(place: Place) -> str:
    """What a data file is, by its content: copying it changes nothing, editing it does.

    The whole file up to 64 MiB; beyond that its size, its first and last MiB and 62 more, evenly
    spaced (a Parquet file's footer, which lies in the last MiB, describes all of it).
    """
    size = place.size_bytes()
    digest = hashlib.sha256(str(size).encode())
    if size <= _WHOLE_BYTES:
        with place.open() as stream:
            while block := stream.read(_SAMPLE_BYTES):
                digest.update(block)
    else:
        for sample in range(_SAMPLES):
            digest.update(place.read_range((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1), _SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def model_identity(folder: Place, setting: str, *, marker: str = "config.json") -> dict[str, str]:
    """SHA-256 of each file that decides what a model folder computes, by name.

    Weights are read whole: two fine-tunes of one model differ in nothing else.

    Args:
        setting: the setting that holds the folder, for an error's first words.
        marker: the file without which the folder is no model.

    Raises:
        UserError: there is no such folder, or the marker is missing.
    """
    if not folder.is_folder():
        raise UserError(f"{setting}: {folder} is no folder; give one in Hugging Face layout")
    names = [e.relative for e in folder.files() if _decides(e.relative)]
    if marker not in names:
        raise UserError(
            f"{setting}: {folder} is no model: it holds no {marker}; give a folder in Hugging Face layout"
        )
    with ThreadPoolExecutor(4) as threads:
        return dict(zip(names, threads.map(lambda name: _sha256(folder / name), names), strict=True))


def _decides(name: str) -> bool:
    # Code too: where a folder's own is allowed, it computes what the model computes.
    endings = (".safetensors", ".json", ".jinja", ".model", "vocab.txt", "merges.txt", ".tiktoken", ".py")
    return name.endswith(endings)


def _sha256(place: Place) -> str:
    with place.open() as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]  # type: ignore[arg-type]


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and their values as JSON, which is what the digest is made of."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(value, sort_keys=True)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
