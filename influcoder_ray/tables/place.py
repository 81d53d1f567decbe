"""A folder or file, on a local disk or an object store, named by its URI."""

import glob as globbing
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem


@dataclass(frozen=True)
class FileEntry:
    """A file found below a folder: its path relative to that folder and its size in bytes."""

    relative: str
    size_bytes: int


@dataclass(frozen=True)
class Place:
    """A location that can be pickled: the filesystem is looked up where it is used.

    `uri` is a local path or anything that fsspec opens (`s3://bucket/prefix`). Credentials and
    endpoints come from the environment, never from here.
    """

    uri: str

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem of this place (fsspec keeps one instance a process)."""
        return fsspec.core.url_to_fs(self.uri)[0]

    @property
    def path(self) -> str:
        """The path inside `filesystem`."""
        return str(fsspec.core.url_to_fs(self.uri)[1])

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
        return bool(self._fresh().exists(self.path))

    def is_folder(self) -> bool:
        return bool(self._fresh().isdir(self.path))

    def size_bytes(self) -> int:
        return int(self.filesystem.size(self.path))

    def open(self) -> BinaryIO:
        """Open the file for reading bytes, seekable."""
        return cast(BinaryIO, self.filesystem.open(self.path, "rb"))

    def read_bytes(self) -> bytes:
        return cast(bytes, self.filesystem.cat_file(self.path))

    def files(self) -> list[FileEntry]:
        """Every file below this folder in order of its path; empty where there is no folder.

        Names with a part that begins with a dot are left out: a write that was cut off leaves such
        a name, and nothing else does.
        """
        filesystem = self._fresh()
        if not filesystem.exists(self.path):
            return []
        root = self.path.rstrip("/") + "/"
        found = filesystem.find(self.path, detail=True)
        entries = (FileEntry(name.removeprefix(root), int(info["size"])) for name, info in found.items())
        return sorted(
            (e for e in entries if not any(part.startswith(".") for part in e.relative.split("/"))),
            key=lambda e: e.relative,
        )

    def glob(self) -> list[str]:
        """The paths of files that match, where the path holds wildcards; in order."""
        found = self._fresh().glob(self.path, detail=True)
        return sorted(path for path, info in found.items() if info["type"] == "file")

    @property
    def has_wildcards(self) -> bool:
        return globbing.has_magic(self.uri)

    def write_whole(self, data: bytes) -> None:
        """Put a file there whole or not at all, replacing what had the name.

        On a local disk: a hidden temporary name, sync, rename, sync of the folder. On an object
        store: one put (or one completed multipart upload), invisible until it is complete.
        """
        if not self.is_local:
            self.filesystem.pipe_file(self.path, data)
            return
        target = Path(self.path)
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

    def remove(self) -> None:
        """Remove the file or folder if it is there."""
        if self.exists():
            self.filesystem.rm(self.path, recursive=True)

    def _fresh(self) -> Any:
        """The filesystem with its cached listings dropped: other processes write here too."""
        filesystem = self.filesystem
        filesystem.invalidate_cache()
        return filesystem
