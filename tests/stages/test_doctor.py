"""Doctor tells what works, and what to do where it does not."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from influcoder_ray.config import PipelineSettings
from influcoder_ray.doctor import examine


def examined(config: Path) -> tuple[bool, str]:
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, file=nowhere, width=200)
        sound = examine(console, str(config))
    return sound, console.export_text()


def test_a_sound_machine_and_settings_are_said_to_be_sound(
    make_settings: Callable[..., PipelineSettings], local_ray: None, tmp_path: Path
) -> None:
    """A doctor that finds fault with what works sends people after nothing."""
    (tmp_path / "settings.yaml").write_text(make_settings(tmp_path / "out").to_yaml())
    sound, text = examined(tmp_path / "settings.yaml")
    assert sound, text
    assert "FAIL" not in text
    for name in ("Python", "torch", "GPU", "files", "S3", "Ray", "settings", "sketch inputs"):
        assert f"ok    {name}" in text
    assert not (tmp_path / "out").exists()


def test_a_fault_in_the_settings_is_named_with_its_remedy(
    make_settings: Callable[..., PipelineSettings], local_ray: None, tmp_path: Path
) -> None:
    """A doctor that calls a broken set-up sound is worse than none."""
    settings = make_settings(tmp_path / "out", adapter={"targets": ["no_such_module"]})
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    sound, text = examined(tmp_path / "settings.yaml")
    assert not sound
    assert "FAIL  sketch inputs" in text
    assert "no_such_module" in text
