"""Settings: read, overridden, checked, written back."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from influcoder_ray.config import PipelineSettings, load_settings, settings_from
from influcoder_ray.errors import UserError
from influcoder_ray.spec import Spec

FIELDS: dict[str, Any] = {
    "output": "out",
    "corpus": {"path": "corpus.parquet", "columns": {"text": "text"}},
    "queries": {"path": "s3://bucket/queries", "columns": {"messages": "messages"}},
    "model": {"path": "owner/name"},
    "encoder": {"path": "owner/encoder"},
}


def write(folder: Path, fields: dict[str, Any]) -> str:
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(fields))
    return str(folder / "pipeline.yaml")


def test_written_settings_load_as_the_same_settings(tmp_path: Path) -> None:
    """A settings.yaml that loads as something else would replay another run."""
    settings = load_settings(write(tmp_path, FIELDS), ["adapter.targets=[q_proj, v_proj]", "seed=3"])
    (tmp_path / "again.yaml").write_text(settings.to_yaml())
    assert load_settings(str(tmp_path / "again.yaml")) == settings


def test_local_paths_become_absolute_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker starts in another folder than the driver: a relative path would point elsewhere there."""
    monkeypatch.chdir(tmp_path)
    settings = load_settings(write(tmp_path, FIELDS))
    assert settings.output == str(tmp_path / "out")
    assert settings.corpus.path == str(tmp_path / "corpus.parquet")
    assert settings.queries.path == "s3://bucket/queries"
    assert settings.model.path == "owner/name"


def test_models_are_found_in_the_home_folder_as_data_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tilde that works for the corpus and not for the model would be looked for as a folder named ~."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models/lm").mkdir(parents=True)
    settings = load_settings(write(tmp_path, FIELDS), ["model.path=~/models/lm", "corpus.path=~/corpus"])
    assert settings.model.path == str(tmp_path / "models/lm")
    assert settings.corpus.path == str(tmp_path / "corpus")


def test_overrides_reach_inner_settings_as_yaml_values(tmp_path: Path) -> None:
    """An override read as text would make a number a string, or a list a name."""
    overrides = ["sketch.width=2048", "sample.queries=null", "workers.embed.gpus=0.5", "output=./elsewhere"]
    settings = load_settings(write(tmp_path, FIELDS), overrides)
    assert settings.sketch.width == 2048
    assert settings.sample.queries is None
    assert settings.workers.embed.gpus == 0.5
    assert settings.output.endswith("/elsewhere")


def test_conditions_read_as_they_are_said_in_files_and_on_the_command_line(tmp_path: Path) -> None:
    """A condition that cannot be set or replaced alone would have to be copied to try another threshold."""
    corpus = FIELDS["corpus"] | {"where": {"language": "en", "score": {"at_least": 0.8}, "dump": ["a", "b"]}}
    overrides = ["corpus.where.score.at_least=0.9", "corpus.where.date.below=2024-03-01"]
    settings = load_settings(write(tmp_path, FIELDS | {"corpus": corpus}), overrides)
    assert {name: str(condition) for name, condition in settings.corpus.conditions} == {
        "date": "below '2024-03-01'",
        "dump": "one of ['a', 'b']",
        "language": "equals 'en'",
        "score": "at least 0.9",
    }
    (tmp_path / "again.yaml").write_text(settings.to_yaml())
    assert load_settings(str(tmp_path / "again.yaml")) == settings


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("sketch.width", "no key=value"),
        ("seed.inner=1", "seed"),
        ("sketch.width=[", "no YAML value"),
        ("corpus.where.date.below=2024-02-30", "corpus.where.date.below: '2024-02-30' is no YAML value"),
        ("sketch.width=1000", "sketch.width"),
        ("corpus.where.score.at_leest=1", "corpus.where.score.at_leest: unknown key; did you mean at_least?"),
        ("corpus.where.score=null", "corpus.where.score: a condition is a value"),
        ("workers.sketch={min: 3, max: 2}", "below min"),
        ("embed.dimensions=129", "embed.dimensions: 129 are more than the 128 that the head will have"),
        ("embed.dimensions=0", "embed.dimensions"),
        ("sample={test_share: 0.6, validation_share: 0.5}", "nothing to train on"),
        ("corpus.columns={text: a, messages: b}", "name one of"),
        ("filter.protected={columns: [x]}", "filter.protected.columns: unknown key; did you mean column?"),
        ("filter.labels={path: labels.jsonl}", "filter.labels.column: missing; Column with the label"),
        ("distill.recipe=[spectral]", "distill.recipe: Input should be 'spectral' or 'influcoder'"),
        ("evaluate.recall_at=[10, 0]", "evaluate.recall_at.1: Input should be greater than or equal to 1"),
        ("evaluate.recall_at=[]", "evaluate.recall_at: Tuple should have at least 1 item"),
    ],
)
def test_a_bad_override_is_refused_by_name(override: str, part: str, tmp_path: Path) -> None:
    """An override that is dropped in silence runs for hours with the wrong setting."""
    with pytest.raises(UserError, match=part):
        load_settings(write(tmp_path, FIELDS | {"seed": 1}), [override])


def test_shorter_vectors_are_refused_where_the_settings_say_that_nothing_trains_for_them(
    tmp_path: Path,
) -> None:
    """Numbers cut off a vector that has no order would be a ranking of nothing, found out after hours."""
    path, shorter = write(tmp_path, FIELDS), "embed.dimensions=16"
    with pytest.raises(
        UserError, match=r"^[^ ]+: embed\.dimensions: distill\.recipe influcoder trains for no"
    ):
        load_settings(path, [shorter, "distill.recipe=influcoder"])
    with pytest.raises(UserError, match="16 are more than the 8 that"):
        load_settings(path, [shorter, "distill.dimensions=8"])
    assert load_settings(path, [shorter, "distill.dimensions=16"]).embed.dimensions == 16


@pytest.mark.parametrize("text", [b"", b"[1, 2]", b"a: [", b"words", b"output: \xe9", b"d: 2024-02-30"])
def test_a_file_that_holds_no_settings_is_refused(text: bytes, tmp_path: Path) -> None:
    """An empty or broken file must not run with defaults."""
    (tmp_path / "bad.yaml").write_bytes(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_settings(str(tmp_path / "bad.yaml"))


def test_a_missing_file_is_refused() -> None:
    """A traceback of open() would be the first thing that a user sees."""
    with pytest.raises(UserError, match="cannot be read"):
        load_settings("/nowhere/pipeline.yaml")


def specs(model: type[Spec]) -> list[type[Spec]]:
    inner = [f.annotation for f in model.model_fields.values()]
    found = [s for s in inner if isinstance(s, type) and issubclass(s, Spec)]
    return [model, *(deeper for spec in found for deeper in specs(spec))]


def test_every_setting_says_what_it_is() -> None:
    """A setting without a sentence can only be understood from the code."""
    silent = [
        f"{spec.__name__}.{name}"
        for spec in specs(PipelineSettings)
        for name, field in spec.model_fields.items()
        if not (field.description or "").endswith((".", "."))
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("output=s3://AKIAEXAMPLE:hidden@bucket/run", "output: the address holds credentials; "),
        ("output=hf://datasets/me/run", "output: the hub is read, not written; give a folder or s3://"),
        ("corpus.path=s3://AKIAEXAMPLE:hid/den@bucket/x", r"corpus\.path: the address holds credentials; "),
        ("model.path=https://AKIAEXAMPLE:hidden@host/x", r"model\.path: the address holds credentials; "),
        ("corpus=s3://AKIAEXAMPLE:hidden@bucket/x", "corpus: .*, not 'an address with credentials in it'"),
    ],
)
def test_credentials_in_an_address_are_refused_by_its_setting_and_not_quoted(
    override: str, named: str, tmp_path: Path
) -> None:
    """A key in a setting would be written into settings.yaml and shown in every log."""
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(FIELDS))
    with pytest.raises(UserError, match=f"^{path}: {named}") as refused:
        load_settings(str(path), [override])
    assert not any(part in str(refused.value) for part in ("AKIA", "hid"))


def test_addresses_are_found_in_every_group_and_paths_are_none() -> None:
    """An address that is overlooked is checked for neither reach nor credentials."""
    settings = settings_from(FIELDS | {"adapter": {"path": "s3://bucket/adapter"}}, source="test")
    assert settings.addresses == {
        "queries.path": "s3://bucket/queries",
        "adapter.path": "s3://bucket/adapter",
    }


def test_settings_are_frozen() -> None:
    """Settings that change under way would no longer be those that were written down."""
    settings = settings_from(FIELDS, source="test")
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 4  # type: ignore[misc]
