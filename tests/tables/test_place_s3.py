"""The same promises on S3, against a server of this process."""

import os
from collections.abc import Callable, Iterator
from functools import partial

import boto3  # type: ignore[import-untyped]
import pyarrow as pa
import pytest
import s3fs
from faulty_s3 import FaultyS3
from moto.server import ThreadedMotoServer

from influcoder_ray.tables.cells import read_cells
from influcoder_ray.tables.conditions import Condition
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import FileEntry, Place
from influcoder_ray.tables.state import Output, StageState, parquet_bytes
from influcoder_ray.tables.units import plan_units


@pytest.fixture(scope="module")
def bucket() -> Iterator[Place]:
    """An empty bucket, with endpoint and credentials in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "test")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.delenv("AWS_PROFILE", raising=False)
            boto3.client("s3").create_bucket(Bucket="runs")
            s3fs.S3FileSystem.clear_instance_cache()
            yield Place("s3://runs")
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.stop()


def test_on_s3_a_write_is_seen_at_once_and_whole_and_a_removed_file_is_gone(bucket: Place) -> None:
    """Prevents a cached listing from hiding what another process has written or removed.

    Another content of the same size is another version, and the same content is none.
    """
    folder = bucket / "place"
    assert folder.files() == []
    assert not folder.exists()
    (folder / "a/x.bin").write_whole(b"first")
    assert folder.files() == [FileEntry("a/x.bin", 5)]
    other_machine = boto3.client("s3")
    other_machine.put_object(Bucket="runs", Key="place/a/y.bin", Body=b"other")
    other_machine.put_object(Bucket="runs", Key="place/a/x.bin", Body=b"longer")
    assert folder.files() == [FileEntry("a/x.bin", 6), FileEntry("a/y.bin", 5)]
    (version, _) = [entry.version for entry in folder.files()]
    (folder / "a/x.bin").write_whole(b"longer")
    assert folder.files()[0].version == version
    (folder / "a/x.bin").write_whole(b"longed")
    assert folder.files()[0].version != version
    (folder / "a/x.bin").write_whole(b"longer")
    assert (folder / "a/x.bin").read_bytes() == b"longer"
    with (folder / "a/x.bin").open() as stream:
        stream.seek(2)
        assert stream.read() == b"nger"
    other_machine.delete_object(Bucket="runs", Key="place/a/y.bin")
    assert not (folder / "a/y.bin").exists()
    assert folder.is_folder()
    folder.remove()
    assert folder.files() == []


def test_on_s3_a_stage_finds_reads_commits_and_reads_back(bucket: Place) -> None:
    """Prevents a run whose input and output lie on S3 from losing rows that a local run keeps."""
    table = pa.table({"text": ["a", "b", "c"]})
    for name in ("data/1/p.parquet", "data/2/p.parquet", "data/_log/p.parquet"):
        (bucket / name).write_whole(parquet_bytes(table, rows_per_group=2))
    files = find_data_files("s3://runs/data", setting="corpus.path")
    assert [file.relative for file in files] == ["1/p.parquet", "2/p.parquet"]
    globbed = find_data_files("s3://runs/data/[12]/*.parquet", setting="corpus.path")
    assert [(file.relative, file.place) for file in globbed] == [
        (file.relative, file.place) for file in files
    ]

    fingerprint = Fingerprint({"stage": "s"})
    state = StageState(bucket / "out", "s", ["words"])
    state.begin(fingerprint)
    units = plan_units(files, rows_per_unit=2, fingerprint=fingerprint.digest)
    for unit in units:
        words = pa.table({"text": pa.array(read_cells(unit, ["text"])["text"], pa.string())})
        state.commit(unit.unit_id, Output({"words": words}, words.num_rows, words.num_rows), 0.0)
    ids = [unit.unit_id for unit in units]
    state.finish(state.manifests(), {})
    assert sorted(state.read("words", table.schema)["text"].to_pylist()) == ["a", "a", "b", "b", "c", "c"]
    assert state.is_done(fingerprint, ids)
    (bucket / f"out/words/{ids[0]}.parquet").remove()
    assert not state.is_done(fingerprint, ids)
    assert state.manifests().keys() == set(ids[1:])


def test_on_s3_rows_that_meet_a_condition_are_read_like_those_on_a_disk(bucket: Place) -> None:
    """Prevents statistics, or parts of row groups, from being read by a way that only disks have."""
    table = pa.table({"text": [f"t{i}" for i in range(6000)], "n": range(6000)})
    (bucket / "some/p.parquet").write_whole(parquet_bytes(table, rows_per_group=5000))
    where = (("n", Condition(at_least=1998, below=2003)),)
    (file,) = find_data_files("s3://runs/some", setting="corpus.path", where=where)
    assert file.may_match == (0,)
    units = plan_units([file], rows_per_unit=2000, fingerprint="f")
    assert [unit.rows for unit in units] == [2500, 2500]
    found = [
        list(zip(cells.rows, cells["text"], strict=True))
        for cells in (read_cells(u, ["text"]) for u in units)
    ]
    assert found == [[(row, f"t{row}".encode()) for row in range(1998, 2003)], []]


def test_on_s3_recognising_a_finished_stage_takes_no_more_requests_for_more_units(
    bucket: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents minutes of reading, once for every stage that follows, where a stage had 100,000 units."""
    fingerprint = Fingerprint({"stage": "s"})
    words = pa.table({"text": ["a", "b", "c"]})
    asked: dict[int, list[int]] = {}
    for count in (2, 20):
        state = StageState(bucket / f"of-{count}", "s", ["words"])
        state.begin(fingerprint)
        ids = [f"u{number:02}" for number in range(count)]
        manifests = {unit: state.commit(unit, Output({"words": words}, 3, 3), 0.0) for unit in ids}
        state.finish(manifests, {})
        with FaultyS3(os.environ["AWS_ENDPOINT_URL"]) as counting, monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", counting.endpoint)
            s3fs.S3FileSystem.clear_instance_cache()
            before, asked[count] = 0, []
            looks: list[tuple[Callable[[], object], object]] = [
                (partial(state.is_done, fingerprint, ids), True),
                (state.finished, fingerprint),
                (lambda state=state: [f.row_groups for f in state.data_files("words")], [(3,)] * count),
            ]
            for look, found in looks:
                assert look() == found
                asked[count].append(counting.requests - before)
                before = counting.requests
        s3fs.S3FileSystem.clear_instance_cache()
    print(f"requests of is_done, finished, data_files: {asked}")
    assert asked[2] == asked[20]
    # s3fs asks for a file's size before it reads it: three files are six requests, and one listing.
    assert asked[20][0] == 7
