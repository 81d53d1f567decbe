"""Places: what is written is whole or not there, and what was cut off is never taken for data."""

import errno
import os
import pickle
import stat
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from influcoder_ray.errors import NoRoom
from influcoder_ray.tables.place import FileEntry, Place


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A folder that does not exist yet, on a disk and on an object store of this process."""
    return Place(str(tmp_path / "out")) if request.param == "local" else Place(f"memory://{uuid.uuid4().hex}")


def test_a_write_puts_the_bytes_there_and_replaces_what_had_the_name(folder: Place) -> None:
    """Prevents a second write from appending to, or being lost beside, the first."""
    place = folder / "a/b.bin"
    assert not place.exists()
    assert folder.files() == []
    place.write_whole(b"first, and longer")
    place.write_whole(b"second")
    assert place.read_bytes() == b"second"
    assert place.size_bytes() == 6
    assert folder.is_folder()
    assert not place.is_folder()
    assert folder.files() == [FileEntry("a/b.bin", 6)]
    assert place.files() == []
    assert (place.read_if_there(), (folder / "a/c.bin").read_if_there()) == (b"second", None)
    with place.open() as stream:
        stream.seek(3)
        assert stream.read() == b"ond"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_stray(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a full disk from destroying the good file, or from littering the table's folder."""
    place = Place(str(tmp_path / "x.parquet"))
    place.write_whole(b"good")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError, match="Input/output error"):
        place.write_whole(b"bad" * 1000)
    assert place.read_bytes() == b"good"
    assert os.listdir(tmp_path) == ["x.parquet"]  # noqa: PTH208 - hidden names too


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["mkdir", "open", "fsync"])
def test_a_full_disk_or_quota_is_named_in_one_line_with_the_file_that_found_no_room(
    step: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a traceback where a person has to make room, and two more attempts at filling a full disk."""
    place = Place(str(tmp_path / "embeddings/x.parquet"))

    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os if step == "fsync" else Path, step, full)
    with pytest.raises(NoRoom) as failed:
        place.write_whole(b"data")
    assert str(failed.value).startswith(f"{place.uri}: there is no room for it on the disk (")
    assert "\n" not in str(failed.value)
    assert failed.value.exit_status == 1
    monkeypatch.undo()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_failing_put_on_an_object_store_leaves_the_old_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents an object store's path from deleting the old object before the new one is there."""
    place = Place(f"memory://{uuid.uuid4().hex}/x")
    place.write_whole(b"good")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(type(place.filesystem), "pipe_file", refuse)
    with pytest.raises(OSError, match="no route"):
        place.write_whole(b"bad")
    assert place.read_bytes() == b"good"


def test_a_process_killed_while_writing_leaves_a_hidden_name_that_is_not_listed(tmp_path: Path) -> None:
    """Prevents half a file, left by a lost machine, from being read as data by the next run."""
    place = Place(str(tmp_path / "x.parquet"))
    place.write_whole(b"good")
    code = (
        "import os, sys\n"
        "from influcoder_ray.tables.place import Place\n"
        "os.fsync = lambda descriptor: os._exit(9)\n"
        "Place(sys.argv[1]).write_whole(b'x' * 100000)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, place.uri], check=False).returncode == 9
    assert len(os.listdir(tmp_path)) == 2  # noqa: PTH208 - hidden names too
    assert Place(str(tmp_path)).files() == [FileEntry("x.parquet", 4)]
    assert place.read_bytes() == b"good"
    (tmp_path / ".keep").touch()
    for swept in (place, Place(str(tmp_path))):
        swept.sweep()
        assert sorted(os.listdir(tmp_path)) == [".keep", "x.parquet"]  # noqa: PTH208 - hidden names too


def test_a_reader_beside_a_writer_sees_one_whole_version(tmp_path: Path) -> None:
    """Prevents a stage that reads while a doubled task writes from seeing half of a file."""
    place = Place(str(tmp_path / "x.bin"))
    versions = [bytes([65 + i]) * (200_000 + 1000 * i) for i in range(20)]
    place.write_whole(versions[0])
    done = threading.Event()

    def write() -> None:
        for version in versions:
            place.write_whole(version)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = [place.read_bytes()]
    while not done.is_set():
        seen.append(place.read_bytes())
    writer.join()
    seen.append(place.read_bytes())
    assert all(data in versions for data in seen)
    assert seen[-1] == versions[-1]


def test_two_writers_of_one_name_leave_one_of_their_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents two tasks that do the same unit from sharing a temporary name and mixing bytes."""
    place = Place(str(tmp_path / "x.bin"))
    both_have_written = threading.Barrier(2, timeout=30)
    sync = os.fsync

    def meet(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            both_have_written.wait()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", meet)
    versions = [b"a" * 100_000, b"b" * 50_000]
    with ThreadPoolExecutor(2) as writers:
        list(writers.map(place.write_whole, versions))
    assert place.read_bytes() in versions
    assert os.listdir(tmp_path) == ["x.bin"]  # noqa: PTH208 - hidden names too


def test_files_are_listed_in_order_below_the_folder_and_hidden_parts_are_left_out(folder: Place) -> None:
    """Prevents a listing whose order depends on the disk, and hidden folders from being read."""
    for name in ("b/2", "b/10", "a", "c/.hidden/x", ".dot", "b/.x.parquet.0f"):
        (folder / name).write_whole(b"1")
    assert [entry.relative for entry in folder.files()] == ["a", "b/10", "b/2"]


def test_removing_takes_files_and_folders_and_minds_nothing_that_is_not_there(folder: Place) -> None:
    """Prevents a second clean-up from failing because the first one succeeded."""
    for name in ("a/1", "a/2", "b"):
        (folder / name).write_whole(b"1")
    (folder / "a").remove()
    (folder / "a").remove()
    assert [entry.relative for entry in folder.files()] == ["b"]
    (folder / "b").remove()
    assert folder.files() == []


def test_a_place_can_be_pickled_joined_and_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a worker with another working directory from writing somewhere else."""
    monkeypatch.chdir(tmp_path)
    place = Place("out/") / "x"
    assert str(place) == place.uri == "out/x"
    assert place.absolute() == Place(str(tmp_path / "out/x"))
    assert pickle.loads(pickle.dumps(place)) == place  # noqa: S301 - our own bytes
    far = Place("s3://bucket/prefix/") / "x"
    assert far.uri == "s3://bucket/prefix/x"
    assert (place.name, place.is_local) == ("x", True)


def test_a_glob_gives_files_alone_in_order(folder: Place) -> None:
    """Prevents a folder whose name matches (Spark writes `x.parquet/`) from being opened as a file."""
    for name in ("2.parquet", "10.parquet", "3.parquet/part", "x.txt"):
        (folder / name).write_whole(b"1")
    pattern = folder / "*.parquet"
    assert pattern.has_wildcards
    assert not folder.has_wildcards
    assert [path.rsplit("/", 1)[-1] for path in pattern.glob()] == ["10.parquet", "2.parquet"]
