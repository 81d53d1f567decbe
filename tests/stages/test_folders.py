"""Models that lie elsewhere, as stages need them: on this machine."""

from pathlib import Path

import fsspec
import pytest

from influcoder_ray.errors import UserError
from influcoder_ray.gradients.specs import AdapterSpec
from influcoder_ray.stages.folders import at_hand


def test_a_remote_adapter_is_known_by_its_own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents trained adapters on S3 from being refused: PEFT writes no config.json."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    remote = fsspec.filesystem("memory")
    for name in ("adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"):
        remote.pipe_file(f"/adapters/a/{name}", b"{}")
    found = at_hand(AdapterSpec(path="memory://adapters/a", optimizer_state="optimizer.safetensors"))
    assert (Path(found.path or "") / "optimizer.safetensors").is_file()
    remote.pipe_file("/adapters/none/config.json", b"{}")
    with pytest.raises(UserError, match=r"adapter\.path: memory://adapters/none .*adapter_config\.json"):
        at_hand(AdapterSpec(path="memory://adapters/none"))
