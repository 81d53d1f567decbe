"""S3 that is busy, slow or cut off changes nothing; S3 that refuses is named at once."""

import json
import pickle
import random
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import fsspec
import pyarrow as pa
import pyarrow.fs
import pytest
import s3fs
from botocore.exceptions import ClientError
from botocore.retries.standard import ExponentialBackoff
from faulty_s3 import FaultyS3, Injury
from moto.server import ThreadedMotoServer
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem
from s3fs.errors import translate_boto_error

from influcoder_ray.errors import UserError
from influcoder_ray.tables import patience
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import FileEntry, Place
from influcoder_ray.tables.state import Output, StageState
from influcoder_ray.tables.stores import refuse_unreachable

KEY, SECRET = "AKIAFAULTYTESTS", "a-secret-for-the-tests-of-faults"
SCHEMA = pa.schema([pa.field("text", pa.string())])
FINGERPRINT = Fingerprint({"stage": "s"})
UNITS = [f"u{i}" for i in range(8)]


@pytest.fixture(scope="module")
def upstream() -> Iterator[str]:
    """An S3 server that holds one bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    plain_client(endpoint).create_bucket(Bucket="runs")
    yield endpoint
    server.stop()


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Make an endpoint this process's S3, `behind(endpoint, read_timeout=1)`; nothing is left open."""

    def use(endpoint: str, **config: object) -> None:
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
        # The client's waits between its own attempts would take most of the time.
        monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.01)
        monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": config})
        s3fs.S3FileSystem.clear_instance_cache()

    yield use
    s3fs.S3FileSystem.clear_instance_cache()


def plain_client(endpoint: str) -> "boto3.client":
    """A client that goes round whatever stands before the server."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="plain",
        aws_secret_access_key="plain",
        region_name="us-east-1",
    )


def commit_all(root: Place) -> StageState:
    state = StageState(root, "s", ["words"])
    state.begin(FINGERPRINT)
    for number, unit in enumerate(UNITS):
        words = random.Random(number)
        table = pa.table({"text": [f"{words.getrandbits(64):x}" for _ in range(200)]}, schema=SCHEMA)
        state.commit(unit, Output({"words": table}, 200, 200), 0.0)
    state.finish(state.manifests(), {})
    return state


def test_tables_on_a_server_that_is_busy_silent_and_cut_off_equal_the_undisturbed_ones(
    upstream: str, behind: Callable[..., None], tmp_path: Path
) -> None:
    """Prevents a spell of SlowDown, or one broken connection, from losing, doubling or halving a shard."""
    undisturbed = commit_all(Place(str(tmp_path)))
    injuries = (
        Injury("cut upload", "PUT", r"words/u1\.parquet"),
        Injury("lost answer", "PUT", r"words/u2\.parquet"),
        Injury("silence", "PUT", r"units/u3\.json"),
        Injury("cut read", "GET", r"words/u4\.parquet"),
        Injury("cut read", "GET", r"units/u5\.json"),
        Injury("cut read", "GET", r"list-type=2"),
        Injury("silence", "GET", r"words/u6\.parquet"),
    )
    with FaultyS3(upstream, injuries=injuries, busy_share=0.1, seed=5) as faulty:
        behind(faulty.endpoint, read_timeout=1)
        state = commit_all(Place("s3://runs/disturbed"))
        assert state.read("words", SCHEMA).equals(undisturbed.read("words", SCHEMA))
        assert state.files("words") == undisturbed.files("words")
        identities = [file.identity for file in state.data_files("words")]
        assert identities == [file.identity for file in undisturbed.data_files("words")]
        assert state.is_done(FINGERPRINT, UNITS)
        assert not faulty.outstanding
        assert faulty.injured["slow down"] >= 5
        print(f"faults: {dict(faulty.injured)} of {faulty.requests} requests")
    client = plain_client(upstream)
    held = client.list_objects_v2(Bucket="runs", Prefix="disturbed/words/")["Contents"]
    assert {o["Key"]: o["Size"] for o in held} == {
        f"disturbed/{f.path}": f.size_bytes for f in undisturbed.files("words")
    }


def test_what_the_client_gives_up_is_asked_again(
    upstream: str, behind: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a store that is busy for longer than the client's own attempts from failing a unit."""
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)
    plain_client(upstream).put_object(Bucket="runs", Key="again/x", Body=b"first")
    folder = Place("s3://runs/again")
    file = folder / "x"
    steps: list[tuple[str, Callable[[], object], object]] = [
        ("exists", file.exists, True),
        ("is a folder", folder.is_folder, True),
        ("size", file.size_bytes, 5),
        ("list", folder.files, [FileEntry("x", 5)]),
        ("glob", (folder / "*").glob, ["runs/again/x"]),
        ("read", file.read_bytes, b"first"),
        ("read as a stream", lambda: file.open().read(), b"first"),
        ("write", lambda: file.write_whole(b"again"), None),
        ("remove", file.remove, None),
    ]
    with FaultyS3(upstream) as faulty:
        behind(faulty.endpoint, retries={"mode": "standard", "total_max_attempts": 1})
        for name, step, result in steps:
            before = faulty.injured["busy"]
            faulty.injure(*(Injury("busy", method, "runs") for method in ("GET", "HEAD", "PUT", "POST") * 2))
            assert step() == result, name
            assert faulty.injured["busy"] >= before + 2, name
            faulty.forget()
    assert "Contents" not in plain_client(upstream).list_objects_v2(Bucket="runs", Prefix="again/")


def test_large_files_survive_a_cut_part_a_cut_read_and_a_lost_last_answer(
    upstream: str, behind: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents parts of a file, which are sent and read side by side and each unguarded, from being lost."""
    # Parts of 5 MiB, S3's least, in place of 50.
    monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 5 << 20)
    monkeypatch.setattr(s3fs.S3FileSystem._pipe_file, "__defaults__", (5 << 20, None, "overwrite"))
    data = random.Random(0).randbytes(11 << 20)
    injuries = (
        Injury("cut upload", "PUT", r"partNumber=2"),
        Injury("lost answer", "POST", r"uploadId="),
        Injury("cut read", "GET", r"large"),
        Injury("cut read", "GET", r"large"),
    )
    with FaultyS3(upstream, injuries=injuries) as faulty:
        behind(faulty.endpoint)
        place = Place("s3://runs/large")
        place.write_whole(data)
        assert place.read_bytes() == data
        faulty.injure(Injury("cut read", "GET", r"large"))
        place.copy_to(tmp_path / "large")
        assert (tmp_path / "large").read_bytes() == data
        assert not faulty.outstanding
    client = plain_client(upstream)
    assert "Uploads" not in client.list_multipart_uploads(Bucket="runs")
    client.delete_object(Bucket="runs", Key="large")


def test_a_deletion_that_deletes_nothing_is_repeated_until_the_names_are_gone(
    upstream: str, behind: Callable[..., None]
) -> None:
    """Prevents manifests of older settings from vouching for files of the new ones."""
    with FaultyS3(upstream, injuries=(Injury("lie", "POST", "delete"),)) as faulty:
        behind(faulty.endpoint)
        state = commit_all(Place("s3://runs/renewed"))
        state.begin(Fingerprint({"stage": "other"}))
        assert state.manifests() == {}
        assert state.totals() is None
        assert faulty.injured == {"lie": 1}


def test_what_ray_train_is_handed_is_the_same_filesystem_with_no_key_in_it(
    upstream: str, behind: Callable[..., None], tmp_path: Path
) -> None:
    """Prevents checkpoints from going by a client without retries, or taking the key into a pickle."""
    for folder in ("from", "to"):
        (tmp_path / folder).mkdir()
    (tmp_path / "from/weights").write_bytes(random.Random(1).randbytes(300_000))
    injuries = (
        Injury("cut upload", "PUT", "weights"),
        Injury("cut read", "GET", "weights"),
        Injury("silence", "PUT", "weights"),
    )
    with FaultyS3(upstream, injuries=injuries, busy_share=0.1, seed=1) as faulty:
        behind(faulty.endpoint, read_timeout=1)
        place = Place("s3://runs/train")
        pickled = pickle.dumps(place.filesystem)
        assert KEY.encode() not in pickled
        assert SECRET.encode() not in pickled
        received = pickle.loads(pickled)  # noqa: S301 - our own bytes
        assert received.config_kwargs == place.filesystem.config_kwargs
        assert received.config_kwargs["retries"]["total_max_attempts"] == 8
        storage = PyFileSystem(FSSpecHandler(received))
        for source, target in ((tmp_path / "from", place.path), (place.path, tmp_path / "to")):
            pyarrow.fs.copy_files(
                str(source),
                str(target),
                source_filesystem=LocalFileSystem() if isinstance(source, Path) else storage,
                destination_filesystem=LocalFileSystem() if isinstance(target, Path) else storage,
            )
        assert (tmp_path / "to/weights").read_bytes() == (tmp_path / "from/weights").read_bytes()
        assert not faulty.outstanding


@pytest.fixture(scope="module")
def guarded(upstream: str) -> Iterator[tuple[str, str]]:
    """The one pair of keys that the server lets in, while it asks for one."""
    iam = boto3.client(
        "iam",
        endpoint_url=upstream,
        aws_access_key_id="plain",
        aws_secret_access_key="plain",
        region_name="us-east-1",
    )
    iam.create_user(UserName="reader")
    allow = {"Effect": "Allow", "Action": "s3:*", "Resource": "arn:aws:s3:::runs*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
    iam.put_user_policy(UserName="reader", PolicyName="runs", PolicyDocument=policy)
    pair = iam.create_access_key(UserName="reader")["AccessKey"]

    def ask_for_keys_after(requests: str) -> None:
        body = urllib.request.Request(
            f"{upstream}/moto-api/reset-auth", requests.encode(), {"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(body).close()

    ask_for_keys_after("0")
    yield pair["AccessKeyId"], pair["SecretAccessKey"]
    ask_for_keys_after("inf")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("key", r"refuses the credentials \(InvalidAccessKeyId\); set AWS_ACCESS_KEY_ID"),
        ("secret", r"refuses the credentials \(SignatureDoesNotMatch\); set AWS_ACCESS_KEY_ID"),
        ("rights", r"gives these credentials no access \(AccessDenied\)"),
        ("bucket", r"there is no bucket 'runs-absent' at http://127\.0\.0\.1"),
        ("name", r"'no name' is no name of a bucket"),
        ("no key", r"needs S3 credentials and there are none; set AWS_ACCESS_KEY_ID"),
        ("profile", r"cannot be used \(ProfileNotFound\); mend AWS_PROFILE"),
        ("closed port", r"no S3 server answers at http://127\.0\.0\.1:1 .*; set AWS_ENDPOINT_URL"),
        ("no address", r"no S3 server answers at .*; set AWS_ENDPOINT_URL"),
    ],
)
def test_wrong_keys_buckets_and_endpoints_are_one_line_and_not_tried_again(
    fault: str,
    said: str,
    upstream: str,
    guarded: tuple[str, str],
    behind: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents a typing error in a key from costing minutes of retries, or a cluster for nothing."""
    uri = {"bucket": "s3://runs-absent/x", "name": "s3://no name/x", "rights": "s3://other/x"}.get(
        fault, "s3://runs/x"
    )
    with FaultyS3(upstream) as watched:
        behind({"closed port": "http://127.0.0.1:1", "no address": "nonsense"}.get(fault, watched.endpoint))
        if fault != "key":
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", guarded[0])
        if fault != "secret":
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", guarded[1])
        if fault == "no key":
            monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        if fault == "profile":
            monkeypatch.setenv("AWS_PROFILE", "absent")
        with pytest.raises(UserError, match=rf"^output: {uri}.*{said}") as refused:
            refuse_unreachable([("corpus.path", "/on/disk"), ("output", uri)])
        assert "\n" not in str(refused.value)
        assert not any(secret in str(refused.value) for secret in (*guarded, KEY, SECRET))
        # One that may not list is asked whether it may read the one object, by a second and third request.
        assert watched.requests <= (3 if fault == "rights" else 1)


def test_the_right_keys_are_let_through_and_a_busy_server_is_waited_for(
    upstream: str,
    guarded: tuple[str, str],
    behind: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents the check from refusing what a run can use: a new prefix, a glob, a busy store."""
    with FaultyS3(upstream, injuries=tuple(Injury("busy", "GET", "runs") for _ in range(4))) as faulty:
        behind(faulty.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", guarded[0])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", guarded[1])
        refuse_unreachable([("output", "s3://runs/new"), ("corpus.path", "s3://runs/data/[ab]*.parquet")])
        assert faulty.injured["busy"] == 4


@pytest.mark.parametrize("wrong", ["s3://runs-absent/x", "s3://runs/absent"])
def test_what_is_refused_for_good_is_asked_once(
    wrong: str,
    upstream: str,
    guarded: tuple[str, str],
    behind: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents two minutes of patience with a bucket, a name or a right that is not there."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    behind(upstream)
    with pytest.raises(PermissionError):
        Place(wrong).write_whole(b"x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", guarded[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", guarded[1])
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises((FileNotFoundError, PermissionError)):
        Place(wrong).read_bytes()
    assert waited == []


@pytest.mark.parametrize(
    ("code", "status", "passes"),
    [
        ("SlowDown", 503, True),
        ("InternalError", 500, True),
        ("503", 503, True),
        ("RequestTimeout", 400, True),
        ("BadDigest", 400, True),
        ("NoSuchUpload", 404, True),
        ("AccessDenied", 403, False),
        ("InvalidAccessKeyId", 403, False),
        ("NoSuchBucket", 404, False),
        ("404", 404, False),
        ("PreconditionFailed", 412, False),
        ("NotImplemented", 501, False),
    ],
)
def test_answers_that_mean_not_now_pass_and_refusals_do_not(code: str, status: int, passes: bool) -> None:
    """Prevents a busy store from ending a unit, and a refusal from being asked for minutes."""
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = translate_boto_error(ClientError(answer, "GetObject"))
    assert patience.answer_of(error) == (code, status)
    assert patience.is_passing(error) == passes


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIAEXAMPLE:hidden@bucket/x",
        "s3://AKIAEXAMPLE:hid/den@bucket/x",
        "s3a://AKIAEXAMPLE@bucket",
        "simplecache::s3://AKIAEXAMPLE:hidden@bucket/x",
        "https://user:hidden@host/x",
        "s3://bucket/x?access_key=AKIAEXAMPLE&secret_key=hidden",
    ],
)
def test_an_address_with_credentials_in_it_is_refused_and_not_quoted(address: str) -> None:
    """Prevents a key from being written into settings.yaml, a log or an error's text."""
    with pytest.raises(UserError, match="holds credentials") as refused:
        find_data_files(address, setting="corpus.path")
    assert not any(part in str(refused.value) for part in ("AKIA", "hid", "user"))


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/a:b@c",
        "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/mine/x",
        "memory://a/b",
        "a:b@c",
    ],
)
def test_names_that_only_look_like_credentials_are_taken(address: str) -> None:
    """Prevents a colon in an object's name, or an access point, from being taken for a password."""
    assert Place(address).uri == address


def test_patience_waits_longer_each_time_at_random_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a thousand workers from coming back at once, and a dead store from being asked for ever."""
    clock = [0.0]
    bounds: list[float] = []

    def uniform(low: float, high: float) -> float:
        assert low == 0
        bounds.append(high)
        return high

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(random, "uniform", uniform)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def fail() -> None:
        raise ConnectionResetError("cut")

    with pytest.raises(ConnectionResetError):
        patience.patiently(fail, seconds=100)
    assert bounds == [0.5, 1, 2, 4, 8, 16, 20, 20, 20, 20]
    assert clock[0] <= 100
