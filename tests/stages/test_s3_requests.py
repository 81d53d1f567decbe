"""What units ask of S3, counted on the wire: requests, and bytes that nobody wants, cost money and time."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import pytest
import s3fs
from faulty_s3 import FaultyS3
from moto.server import ThreadedMotoServer

from influcoder_ray.planning.requests import COMMIT, PIECE, SHARD_READ, Requests
from influcoder_ray.stages.work.search import SearchTables, SearchWork
from influcoder_ray.tables import fingerprint, schemas
from influcoder_ray.tables.arrays import vector_column
from influcoder_ray.tables.cells import read_pieces
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.fingerprint import Fingerprint, file_identity
from influcoder_ray.tables.manifests import CommittedFile, Manifest
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Output, StageState, parquet_bytes
from influcoder_ray.tables.units import plan_units

MIB = 1 << 20
FINGERPRINT = Fingerprint({"stage": "s"})


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """An S3 server that holds one bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="a",
        aws_secret_access_key="a",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="runs")
    yield endpoint
    server.stop()


@pytest.fixture
def counted(upstream: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """This process's S3, which injures nothing and tells what it was asked."""
    with FaultyS3(upstream) as server:
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
        s3fs.S3FileSystem.clear_instance_cache()


def asked(server: FaultyS3) -> Requests:
    """What was asked since the last time."""
    found = Counter("LIST" if "list-type" in path else method for method, path in server.asked)
    server.asked.clear()
    assert found.keys() <= {"LIST", "GET", "HEAD", "PUT", "POST"}
    return Requests(found["PUT"] + found["POST"] + found["LIST"], found["GET"] + found["HEAD"])


def words(mebibytes: float) -> pa.Table:
    """Rows of text that no codec makes less of."""
    generator = np.random.default_rng(0)
    texts = [generator.bytes(512).hex() for _ in range(int(mebibytes * 1024))]
    return pa.table({"text": texts, "other": texts})


def test_a_unit_of_a_corpus_costs_the_requests_that_plans_count(counted: FaultyS3) -> None:
    """Prevents a bill, and a limit on requests, that no plan has named."""
    root = Place("s3://runs/embed")
    (root / "corpus/a.parquet").write_whole(parquet_bytes(words(6), rows_per_group=2048))
    (unit, *_) = plan_units(
        find_data_files((root / "corpus").uri, setting="test"), rows_per_unit=2048, fingerprint="f"
    )
    state = StageState(root, "s", ["rows"])
    state.begin(FINGERPRINT)
    asked(counted)
    before = counted.bytes_given
    ((_, cells),) = read_pieces(unit, ["text"])
    assert len(cells["text"]) == 2048
    assert asked(counted) == PIECE
    # No more than is read ahead.
    assert counted.bytes_given - before < 11 * MIB
    state.commit(unit.unit_id, Output({"rows": words(0.1)}, 0, 0), 0.0)
    assert asked(counted) == COMMIT.with_tables(1)


def test_a_unit_of_the_search_costs_the_requests_that_plans_count(counted: FaultyS3) -> None:
    """Prevents the same of the search, which reads vectors past the columns beside them."""
    root = Place("s3://runs/search")
    vectors, _ = vector_column(np.random.default_rng(0).normal(size=(2000, 384)), "float16")
    names = [f"{row:09}" for row in range(2000)]
    cells = {"example_id": names, "source": names, "embedding": vectors}
    table = pa.table(cells | {"familiarity": np.full(2000, 50, np.float32)}, schema=schemas.embeddings(384))
    for folder in ("embeddings", "queries"):
        (root / folder / "a.parquet").write_whole(parquet_bytes(table[: 20 if folder == "queries" else 2000]))
    (unit,) = plan_units(
        find_data_files((root / "embeddings").uri, setting="test"), rows_per_unit=1 << 18, fingerprint="f"
    )
    state = StageState(root, "s", ["group", "rankings", "histogram"])
    state.begin(FINGERPRINT)
    queries = find_data_files((root / "queries").uri, setting="test")
    work = SearchWork(queries, SearchTables("group", "rankings", "histogram"), 20, 5.0)
    asked(counted)
    output = work.process(unit, work.read(unit), lambda rows: None)
    assert asked(counted) == SHARD_READ
    state.commit(unit.unit_id, output, 0.0)
    assert asked(counted) == COMMIT.with_tables(3)


def test_an_identity_reads_its_samples_and_nothing_between(
    counted: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a corpus of large files from being read several times over before the first unit."""
    monkeypatch.setattr(fingerprint, "_WHOLE_BYTES", 4 * MIB)
    monkeypatch.setattr(fingerprint, "_SAMPLES", 3)
    place = Place("s3://runs/large.parquet")
    place.write_whole(np.random.default_rng(0).bytes(24 * MIB))
    asked(counted)
    before = counted.bytes_given
    file_identity(place)
    assert asked(counted) == Requests(0, 1 + 3)
    assert counted.bytes_given - before == 3 * MIB


def test_units_that_are_noted_down_are_not_read_one_by_one(counted: FaultyS3, tmp_path: Path) -> None:
    """Prevents a million requests at the start of a run that goes on, and as many at its end."""
    state = StageState(Place("s3://runs/noted"), "s", ["rows"])
    state.begin(FINGERPRINT)
    for unit in ("u1", "u2", "u3"):
        state.commit(unit, Output({"rows": words(0.01)}, 0, 0), 0.0)
    written = state.manifests()
    made_up = [
        Manifest(f"m{number}", 0, 0, 0, 0.0, (CommittedFile("rows", "rows/u1.parquet", 0, 1, "0"),))
        for number in range(400)
    ]
    asked(counted)
    state.note([*written.values(), *made_up])
    assert asked(counted).reads == 0
    assert state.take_up(["u1", "u2", "u3"]) == written
    # Listings of notes, units and the table, and the note itself.
    assert asked(counted) == Requests(3, 2)
    assert state.whole(written.values()) == written
    assert asked(counted) == Requests(1, 0)
