"""A model's folder, wherever it lies, ends up on this machine."""

from pathlib import Path

import fsspec
import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from influcoder_ray.errors import UserError
from influcoder_ray.tables.models import local_model_folder


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    """A copy of a local model would fill the disk for nothing."""
    assert local_model_folder(str(tmp_path), setting="model.path") == str(tmp_path)


def test_a_remote_folder_is_fetched_whole_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker of a machine fetching gigabytes anew would take longer than the work."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    remote = fsspec.filesystem("memory")
    remote.pipe_file("/models/m/config.json", b"{}")
    remote.pipe_file("/models/m/1_Pooling/config.json", b"[1]")
    first = local_model_folder("memory://models/m", setting="model.path")
    assert (Path(first) / "config.json").read_bytes() == b"{}"
    assert (Path(first) / "1_Pooling/config.json").read_bytes() == b"[1]"
    stamp = (Path(first) / "config.json").stat().st_mtime_ns
    assert local_model_folder("memory://models/m", setting="model.path") == first
    assert (Path(first) / "config.json").stat().st_mtime_ns == stamp
    remote.pipe_file("/models/m/config.json", b'{"changed": 1}')
    assert local_model_folder("memory://models/m", setting="model.path") != first


def test_a_remote_folder_written_anew_in_the_same_size_is_fetched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents the weights of before a further training from being taken for those of after it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    remote = fsspec.filesystem("memory")
    remote.pipe_file("/models/n/config.json", b"{}")
    for weights in (b"before", b"after!"):
        remote.pipe_file("/models/n/model.safetensors", weights)
        here = local_model_folder("memory://models/n", setting="model.path")
        assert (Path(here) / "model.safetensors").read_bytes() == weights


def test_a_model_without_its_weights_still_has_its_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a tokenizer of a model with code of its own from being had on a local disk alone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = {"config.json", "tokenization_own.py", "own.tiktoken"}
    for name in (*names, "model.safetensors"):
        fsspec.filesystem("memory").pipe_file(f"/models/own/{name}", b"{}")
    here = local_model_folder("memory://models/own", setting="model.path", weights=False)
    assert {file.name for file in Path(here).iterdir()} == names


def test_a_remote_folder_without_a_model_is_refused() -> None:
    """A wrong prefix must be one line, not a download of whatever lies there."""
    fsspec.filesystem("memory").pipe_file("/other/readme.txt", b"no model")
    with pytest.raises(UserError, match=r"encoder\.path.*config\.json"):
        local_model_folder("memory://other", setting="encoder.path")


def test_a_hub_name_is_asked_of_the_hub_without_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository's pickled weights are never wanted: fetching them doubles the download."""
    asked = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert local_model_folder("owner/name", setting="model.path") == str(tmp_path)
    assert asked["name"] == "owner/name"
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked["patterns"])
    assert "*.py" in asked["patterns"]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without network must learn what to give instead."""

    def refuse(name: str, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match="owner/name is no folder here"):
        local_model_folder("owner/name", setting="model.path")
