"""A folder or file, on a local disk or an object store, named by its URI."""

import errno
import glob as globbing
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractBufferedFile

from influcoder_ray.errors import NoRoom, UserError
from influcoder_ray.tables.hub import content_id, is_hub
from influcoder_ray.tables.patience import Unfinished, patiently
from influcoder_ray.tables.s3 import holds_credentials, is_s3, s3_options

T = TypeVar("T")

# Read beyond what is asked for, of an open file on an object store, where each request takes as long as
# a megabyte or two. fsspec's own 50 MiB would be as much again as a unit of a large file.
_AHEAD_BYTES = 8 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What a listing tells of a file by which another content shows: a checksum where there is one, else a time.
_VERSIONS = ("ETag", "blob_id", "LastModified", "mtime", "created")
# What a file is called while it is being written.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")


@dataclass(frozen=True)
class FileEntry:
    """A file found below a folder: its path relative to that folder and its size in bytes.

    `version` is another one once the file has been written anew with another content.
    """

    relative: str
    size_bytes: int
    version: str = field(default="", compare=False)


@dataclass(frozen=True)
class Place:
    """A location that can be pickled: the filesystem is looked up where it is used.

    `uri` is a local path or anything that fsspec opens (`s3://bucket/prefix`). Credentials and
    endpoints come from the environment, never from here. What a place that is not local is asked for
    is asked again while its store is busy or a connection breaks.

    Raises:
        UserError: the address holds a user name, a password or a key.
    """

    uri: str

    def __post_init__(self) -> None:
        if holds_credentials(self.uri):
            scheme = self.uri.split("://", 1)[0]
            raise UserError(f"{scheme}://...: the address holds credentials; leave them to the environment")

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem of this place (fsspec keeps one instance a process)."""
        return self._opened()[0]

    @property
    def path(self) -> str:
        """The path inside `filesystem`."""
        return self._opened()[1]

    @property
    def is_local(self) -> bool:
        """Whether the place lies on a disk of this machine (or one mounted on it)."""
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    def __truediv__(self, relative: str) -> "Place":
        return Place(self.uri.rstrip("/") + "/" + relative)

    def __str__(self) -> str:
        return self.uri

    def absolute(self) -> "Place":
        """The same place under a name that does not depend on the working directory."""
        return Place(self.path) if self.is_local else self

    def exists(self) -> bool:
        return self._asked(lambda: bool(self._fresh().exists(self.path)))

    def is_folder(self) -> bool:
        return self._asked(lambda: bool(self._fresh().isdir(self.path)))

    def size_bytes(self) -> int:
        return self._asked(lambda: int(self.filesystem.size(self.path)))

    def content_id(self) -> str:
        """What the store says of the file's content as it was last listed; empty where it does not.

        Equal for equal contents, so that nothing has to be read to tell one from another.
        """
        return self._asked(lambda: content_id(self.filesystem, self.path)) if is_hub(self.uri) else ""

    def open(self) -> BinaryIO:
        """Open the file for reading bytes, seekable."""
        ahead = {} if self.is_local else {"block_size": _AHEAD_BYTES}
        stream = self._asked(lambda: self.filesystem.open(self.path, "rb", **ahead))
        if isinstance(stream, AbstractBufferedFile):
            stream.cache.fetcher = _patient_ranges(stream.cache.fetcher)
        return cast(BinaryIO, stream)

    def read_bytes(self) -> bytes:
        return self._asked(lambda: cast(bytes, self.filesystem.cat_file(self.path)))

    def read_range(self, start: int, size_bytes: int) -> bytes:
        """So many bytes from the byte `start` on, in one request, which asks for no others."""

        def read() -> bytes:
            data = cast(bytes, self.filesystem.cat_file(self.path, start=start, end=start + size_bytes))
            if len(data) != size_bytes:
                raise Unfinished(f"{size_bytes} bytes of {self.uri} were asked for and {len(data)} came")
            return data

        return self._asked(read)

    def read_if_there(self) -> bytes | None:
        """The file's bytes, or None where there is no file: one request, where asking first takes two."""
        try:
            return self.read_bytes()
        except FileNotFoundError:
            return None

    def copy_to(self, target: Path) -> None:
        """Copy the file to this machine, in place of what had the name there."""
        self._asked(lambda: self.filesystem.get_file(self.path, str(target)))

    def files(self) -> list[FileEntry]:
        """Every file below this folder in order of its path; empty where there is none, or a file.

        Names with a part that begins with a dot are left out: a write that was cut off leaves such
        a name, and nothing else does.
        """
        root = self.path.rstrip("/") + "/"
        found = self._asked(self._found)
        entries = (
            FileEntry(
                name.removeprefix(root),
                int(info["size"]),
                next((str(info[key]) for key in _VERSIONS if info.get(key)), ""),
            )
            for name, info in found.items()
            if name.startswith(root)
        )
        return sorted(
            (e for e in entries if not any(part.startswith(".") for part in e.relative.split("/"))),
            key=lambda e: e.relative,
        )

    def glob(self) -> list[str]:
        """The paths of files that match, where the path holds wildcards; in order."""
        found = self._asked(lambda: self._fresh().glob(self.path, detail=True))
        return sorted(path for path, info in found.items() if info["type"] == "file")

    @property
    def has_wildcards(self) -> bool:
        return globbing.has_magic(self.uri)

    def write_whole(self, data: bytes) -> None:
        """Put a file there whole or not at all, replacing what had the name.

        On a local disk: a hidden temporary name, sync, rename, sync of the folder. On an object
        store: one put (or one completed multipart upload), invisible until it is complete.

        Raises:
            NoRoom: the disk, or the quota on it, is full; what had the name is as it was.
        """
        if not self.is_local:
            self._asked(lambda: self.filesystem.pipe_file(self.path, data))
            return
        try:
            _replace(Path(self.path), data)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise NoRoom(
                f"{self.uri}: there is no room for it on the disk ({error.strerror}); make some, then run "
                "the same command again: what is finished is kept"
            ) from error

    def remove(self) -> None:
        """Remove the file or folder if it is there, with all that is in it."""
        self._asked(self._remove)

    def sweep(self) -> None:
        """Remove what writes that were cut off left of this file, or below this folder.

        For when nobody writes there any more. Only a disk has such: an object store shows what is complete.
        """
        if not self.is_local:
            return
        here = Path(self.path)
        for found in chain(here.rglob(".*"), here.parent.glob(f".{globbing.escape(here.name)}.*")):
            if _TEMPORARY.fullmatch(found.name):
                found.unlink(missing_ok=True)

    def _remove(self) -> None:
        if not self._fresh().exists(self.path):
            return
        self.filesystem.rm(self.path, recursive=True)
        # S3 deletes a thousand names at a time and answers 200 where it left some, which s3fs passes over.
        if self._fresh().exists(self.path):
            raise Unfinished(f"{self.uri} was removed and is still there")

    def _found(self) -> dict[str, Any]:
        try:
            return cast(dict[str, Any], self._fresh().find(self.path, detail=True))
        except FileNotFoundError:
            return {}

    def _asked(self, action: Callable[[], T]) -> T:
        """What an action comes to: once on a disk, whose faults do not pass, patiently elsewhere."""
        return action() if self.is_local else patiently(action)

    def _opened(self) -> tuple[Any, str]:
        filesystem, path = fsspec.core.url_to_fs(self.uri, **(s3_options() if is_s3(self.uri) else {}))
        return filesystem, str(path)

    def _fresh(self) -> Any:
        """The filesystem with its cached listings dropped: other processes write here too."""
        filesystem = self.filesystem
        filesystem.invalidate_cache()
        if is_hub(self.uri):
            # Each thread has a filesystem, with listings of its own: all are forgotten.
            type(filesystem).clear_instance_cache()
        return self.filesystem


def _replace(target: Path, data: bytes) -> None:
    """Put a file on a disk, or leave what had its name; a write that fails leaves no temporary file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _patient_ranges(fetch: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
    """How an open file gets a range of its bytes, made patient; fewer bytes than were asked for are none."""

    def once(start: int, end: int) -> bytes:
        data = fetch(start, end)
        if len(data) != end - start:
            raise Unfinished(f"bytes {start} to {end} were asked for and {len(data)} came")
        return data

    return lambda start, end: patiently(lambda: once(start, end))
