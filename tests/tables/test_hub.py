"""Data sets on the Hugging Face Hub, against a server of this process that answers as it does."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import httpx2
import pyarrow as pa
import pytest
from fake_hub import FakeHub
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from influcoder_ray.errors import UserError
from influcoder_ray.tables.cells import read_pieces
from influcoder_ray.tables.conditions import Condition
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.patience import is_passing
from influcoder_ray.tables.state import parquet_bytes
from influcoder_ray.tables.stores import refuse_unreachable
from influcoder_ray.tables.units import plan_units

LINES = "\n".join(json.dumps({"text": f"line {i}", "n": i}) for i in range(30)).encode()
TABLE = pa.table({"text": [f"row {i}" for i in range(2500)], "n": range(2500)})
FILES = {
    "README.md": b"what it is",
    "data/2024/000.parquet": parquet_bytes(TABLE, rows_per_group=1000),
    "data/2024/001.jsonl.gz": gzip.compress(LINES),
    "data/2025/000.parquet": parquet_bytes(TABLE.slice(0, 7), rows_per_group=1000),
}

Use = Callable[[FakeHub, str], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Make a server this process's hub, with a token or without, though the environment may say offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def make(hub: FakeHub, token: str = "") -> None:
        options = {"endpoint": hub.endpoint, "token": token or False}
        monkeypatch.setitem(fsspec.config.conf, "hf", options)

    return make


def test_a_data_set_on_the_hub_reads_as_its_files_on_a_disk(tmp_path: Path, use: Use) -> None:
    """Prevents rows that are lost, or found under other names, where the corpus is read from the hub."""
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    where = (("n", Condition(at_least=3)),)

    def rows(uri: str) -> dict[tuple[str, int], object]:
        files = find_data_files(uri, setting="corpus.path", where=where)
        units = plan_units(files, rows_per_unit=1000, fingerprint="f")
        return {
            (piece.relative, number): text
            for unit in units
            for piece, cells in read_pieces(unit, ["text"])
            for number, text in zip(cells.rows, cells["text"], strict=True)
        }

    with FakeHub("me/corpus", FILES) as hub:
        use(hub, "")
        for path in ("", "/data", "/data/*/*.parquet", "/data/2024/001.jsonl.gz"):
            found = rows(f"hf://datasets/me/corpus{path}")
            assert found == rows(f"{tmp_path}{path}")
            assert len(found) > 26
        assert rows("hf://datasets/me/corpus@main/data") == rows(f"{tmp_path}/data")


def test_files_on_the_hub_are_told_apart_by_its_own_hashes(use: Use) -> None:
    """Prevents every file of a corpus from being read whole, each time that a stage asks whether it has
    changed, and a change on the hub from going unseen."""
    files = {f"{i:02}.parquet": parquet_bytes(TABLE.slice(i), rows_per_group=1000) for i in range(9)}
    files["copy.parquet"] = files["03.parquet"]
    with FakeHub("me/corpus", files) as hub:
        use(hub, "")

        def identities() -> dict[str, str]:
            found = find_data_files("hf://datasets/me/corpus", setting="corpus.path")
            return {file.relative: file.identity for file in found}

        first = identities()
        assert len(set(first.values())) == 9
        assert first["copy.parquet"] == first["03.parquet"]
        # Footers alone.
        assert hub.asked["bytes"] <= 2 * len(files)
        hub.files = files | {"05.parquet": parquet_bytes(TABLE.slice(99), rows_per_group=1000)}
        second = identities()
        assert [name for name in first if first[name] != second[name]] == ["05.parquet"]


def test_a_hub_that_is_busy_is_asked_again(use: Use) -> None:
    """Prevents a rate limit from ending a run of many workers."""
    with FakeHub("me/corpus", FILES) as hub:
        use(hub, "")
        hub.busy = 1
        (file,) = find_data_files("hf://datasets/me/corpus/data/2025", setting="corpus.path")
        assert hub.busy == 0
        assert file.row_groups == (7,)


def _answer(status: int) -> HfHubHTTPError:
    return HfHubHTTPError(str(status), response=httpx2.Response(status, request=httpx2.Request("GET", "x:")))


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (_answer(429), True),
        (_answer(503), True),
        (_answer(401), False),
        (_answer(404), False),
        (httpx2.ConnectError("refused"), True),
        (httpx2.ReadTimeout("slow"), True),
        (OfflineModeIsEnabled("offline"), False),
        (KeyError("blob_id"), False),
    ],
    ids=str,
)
def test_faults_of_the_hub_pass_or_do_not(error: Exception, passes: bool) -> None:
    """Prevents two minutes of waiting for an answer that stays, and none for one that would change."""
    assert is_passing(error) is passes


@pytest.mark.parametrize(
    ("uri", "hub_is", "told"),
    [
        ("hf://datasets/me/other", {}, "the hub has no hf://datasets/me/other, or shows it to nobody"),
        ("hf://datasets/me/corpus@v9", {}, "the hub has no hf://datasets/me/corpus@v9"),
        ("hf://datasets/me/corpus", {"token": "secret"}, "set HF_TOKEN if it is private"),
        ("hf://datasets/me/corpus", {"gated": True}, "is gated; accept its conditions on the hub"),
        ("hf://corpus", {}, "is no address on the hub; give hf://datasets/owner/name/path"),
    ],
)
def test_what_the_hub_does_not_give_is_refused_at_once(
    uri: str, hub_is: dict[str, object], told: str, use: Use
) -> None:
    """Prevents a traceback, or a file that is called unreadable, where a name or a right is missing."""
    with FakeHub("me/corpus", FILES, **hub_is) as hub:  # type: ignore[arg-type]
        use(hub, "")
        with pytest.raises(UserError) as refusal:
            refuse_unreachable([("corpus.path", uri)])
        assert str(refusal.value).startswith("corpus.path: ")
        assert told in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_machine_that_is_to_stay_offline_is_told_so(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents minutes of waiting for a hub that nobody may ask, or a data set that is called missing."""
    with FakeHub("me/corpus", FILES) as hub:
        use(hub, "")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match=r"^corpus\.path: hf://\S+ lies on the hub, and HF_HUB_OFFLINE"):
            refuse_unreachable([("corpus.path", "hf://datasets/me/corpus")])
        assert not hub.asked


def test_a_private_data_set_is_read_with_a_token(use: Use) -> None:
    """Prevents a token of the environment from being left out by the filesystem, or by the first look."""
    with FakeHub("me/corpus", FILES, token="secret") as hub:
        use(hub, "secret")
        refuse_unreachable([("corpus.path", "hf://datasets/me/corpus")])
        assert len(find_data_files("hf://datasets/me/corpus", setting="corpus.path")) == 3
