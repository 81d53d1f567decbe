"""Fingerprints: equal for equal content, different for anything that changes a number."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.errors import UserError
from influcoder_ray.tables.fingerprint import Fingerprint, digest_of, file_identity, model_identity
from influcoder_ray.tables.place import Place


def test_a_copy_has_the_same_identity_and_an_edit_of_any_byte_another(tmp_path: Path) -> None:
    """Prevents a corpus moved to another disk from being redone, and an edited one from being skipped."""
    data = bytes(range(256)) * 5000
    (tmp_path / "a.jsonl").write_bytes(data)
    identity = file_identity(Place(str(tmp_path / "a.jsonl")))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.jsonl").write_bytes(data)
    assert file_identity(Place(str(tmp_path / "elsewhere/b.jsonl"))) == identity
    for position in (0, len(data) // 2, len(data) - 1):
        edited = bytearray(data)
        edited[position] ^= 1
        (tmp_path / "c.jsonl").write_bytes(edited)
        assert file_identity(Place(str(tmp_path / "c.jsonl"))) != identity
    (tmp_path / "d.jsonl").write_bytes(data + b"\n")
    assert file_identity(Place(str(tmp_path / "d.jsonl"))) != identity


def test_a_large_file_is_known_by_its_size_its_ends_and_samples(tmp_path: Path) -> None:
    """Prevents the sampling of large files from missing their size, head or footer."""
    path = tmp_path / "large.parquet"
    size = (64 << 20) + 12345

    def identity(size: int, edits: dict[int, bytes]) -> str:
        with path.open("wb") as stream:
            stream.truncate(size)
            for position, data in edits.items():
                stream.seek(position)
                stream.write(data)
        return file_identity(Place(str(path)))

    found = [
        identity(size, {}),
        identity(size + 1, {}),
        identity(size, {0: b"x"}),
        identity(size, {size - 1: b"x"}),
        identity(size, {(size - (1 << 20)) // 63: b"x"}),
    ]
    assert len(set(found)) == len(found)
    assert identity(size, {}) == found[0]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = st.dictionaries(st.sampled_from("abc"), _JSON, max_size=3)


@given(_FIELDS, _FIELDS)
@settings(max_examples=50, deadline=None)
def test_fingerprints_differ_exactly_where_a_difference_is_named(
    here: dict[str, Any], there: dict[str, Any]
) -> None:
    """Prevents a refusal that names no field (null against absent, 1 against true, {} against absent)."""
    ours, theirs = Fingerprint(here), Fingerprint(there)
    assert (ours.digest == theirs.digest) == (not ours.differences(theirs))
    assert Fingerprint.from_json(ours.to_json()).digest == ours.digest
    assert Fingerprint.from_json(ours.to_json()).differences(ours) == []


def test_differences_name_dotted_fields_with_both_values() -> None:
    """Prevents a refusal that leaves the user to compare two files by eye."""
    here = Fingerprint({"model": {"files": {"a": "1"}, "window": 64}, "seed": 0, "targets": ("q", "v")})
    there = Fingerprint(
        {"model": {"files": {"a": "2"}}, "seed": None, "targets": ["q", "v"], "old": "x" * 99}
    )
    assert here.differences(there) == [
        'model.files.a is "2" there and "1" here',
        "model.window is absent there and 64 here",
        f'old is "{"x" * 56}... there and absent here',
        "seed is null there and 0 here",
    ]


def test_a_digest_does_not_depend_on_the_order_of_keys_but_on_that_of_lists() -> None:
    """Prevents two equal settings files from making two fingerprints."""
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of([1, 2]) != digest_of([2, 1])
    assert len(digest_of("é")) == 32


def test_a_models_identity_is_that_of_the_files_that_decide_what_it_computes(tmp_path: Path) -> None:
    """Prevents a fine-tune, or other code of its own, under an old name from passing for the model before."""
    deciding = {"config.json", "model.safetensors", "modeling_own.py", "own.tiktoken"}
    for name in (*deciding, "README.md", "onnx/model.onnx", ".cache/x.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    before = model_identity(Place(str(tmp_path)), "model.path")
    assert before.keys() == deciding
    (tmp_path / "README.md").write_bytes(b"new words")
    assert model_identity(Place(str(tmp_path)), "model.path") == before
    (tmp_path / "model.safetensors").write_bytes(b"new weights")
    after = model_identity(Place(str(tmp_path)), "model.path")
    assert [name for name in before if after[name] != before[name]] == ["model.safetensors"]


@pytest.mark.parametrize("held", [None, "README.md", "tokenizer_config.json", "deep/config.json"])
def test_a_folder_that_is_no_model_is_refused_in_one_line(held: str | None, tmp_path: Path) -> None:
    """Prevents a tokenizer's or another folder's settings from passing for a model."""
    folder = tmp_path / "model"
    if held:
        (folder / held).parent.mkdir(parents=True)
        (folder / held).write_text("{}")
    expected = "is no model: it holds no config.json; give a folder" if held else "is no folder; give one"
    with pytest.raises(UserError) as refused:
        model_identity(Place(str(folder)), "model.path")
    assert str(refused.value).startswith(f"model.path: {folder} {expected}")
    assert len(str(refused.value).splitlines()) == 1


def test_a_file_in_place_of_a_model_folder_is_refused_and_an_adapter_needs_its_own_marker(
    tmp_path: Path,
) -> None:
    """Prevents a traceback for a weights file given as a model, and a model given as an adapter."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is no folder"):
        model_identity(Place(str(tmp_path / "config.json")), "model.path")
    with pytest.raises(UserError, match=r"holds no adapter_config\.json"):
        model_identity(Place(str(tmp_path)), "adapter.path", marker="adapter_config.json")
