"""Doctor tells what works, and what to do where it does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from influcoder_ray import doctor
from influcoder_ray.config import PipelineSettings
from influcoder_ray.doctor import examine
from influcoder_ray.gradients import selfcheck


def examined(config: Path, rows: int = 12) -> tuple[bool, str]:
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, file=nowhere, width=200)
        sound = examine(console, str(config), rows=rows)
    return sound, console.export_text()


@pytest.fixture
def no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a look at the machine, which would start Ray."""
    monkeypatch.setattr(doctor, "machine_findings", list)


def test_a_sound_machine_and_settings_are_said_to_be_sound(
    make_settings: Callable[..., PipelineSettings], local_ray: None, tmp_path: Path
) -> None:
    """A doctor that finds fault with what works sends people after nothing."""
    (tmp_path / "settings.yaml").write_text(make_settings(tmp_path / "out").to_yaml())
    sound, text = examined(tmp_path / "settings.yaml")
    assert sound, text
    assert "FAIL" not in text
    for name in ("Python", "torch", "GPU", "files", "S3", "Ray", "settings", "sketch inputs", "gradients"):
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


def test_settings_have_their_own_model_adapter_and_rows_looked_at(
    make_settings: Callable[..., PipelineSettings],
    no_machine: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A check of another adapter, or of other rows, would say nothing about the run to come."""
    looked_at = []

    def noted(*arguments: object, **options: object) -> selfcheck.SelfCheck:
        looked_at.append((arguments, options))
        return check(*arguments, **options)  # type: ignore[arg-type]

    check = selfcheck.self_check
    monkeypatch.setattr(doctor.gradients, "self_check", noted)
    settings = make_settings(tmp_path / "out", sketch={"width": 4096}, seed=5)
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    sound, text = examined(tmp_path / "settings.yaml", rows=7)
    assert sound, text
    (((model, adapter, examples), options),) = looked_at
    assert (model, adapter, options["seed"]) == (settings.model, settings.adapter, 5)
    assert [e.example_id[0] for e in examples] == ["q"] * 4 + ["c"] * 3
    assert "ok    rows: 7 of" in text
    assert "it is 4,096" in text


def test_a_model_of_the_settings_that_does_not_fit_is_a_fault_with_its_remedy(
    make_settings: Callable[..., PipelineSettings],
    no_machine: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine too small to look at a model must not take what was found before with it."""
    monkeypatch.setattr(selfcheck, "free_memory_bytes", lambda: 10**5)
    (tmp_path / "settings.yaml").write_text(make_settings(tmp_path / "out").to_yaml())
    sound, text = examined(tmp_path / "settings.yaml")
    assert not sound
    assert "ok    sketch inputs" in text
    assert "FAIL  gradients: cannot be looked at" in text
    assert "take fewer examples" in text


def test_gradients_are_not_looked_at_where_the_inputs_cannot_be_used(
    make_settings: Callable[..., PipelineSettings], no_machine: None, tmp_path: Path
) -> None:
    """One fault told twice sends people after two."""
    settings = make_settings(tmp_path / "out", adapter={"targets": ["no_such_module"]})
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    sound, text = examined(tmp_path / "settings.yaml")
    assert not sound
    assert text.count("FAIL") == 1
    assert "  gradients: " not in text
