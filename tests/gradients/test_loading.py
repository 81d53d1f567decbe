"""A folder that holds no usable causal LM is refused in one line, before any work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import build_causal_lm, build_encoder
from transformers import BertConfig, BertLMHeadModel, DistilBertConfig, T5Config

from influcoder_ray.errors import UserError
from influcoder_ray.examples.tokenizer import load_tokenizer
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.loading import arithmetic_dtype, load_config, load_model
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Teacher


def refusal(folder: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        Teacher.load(ModelSpec(path=str(folder)), AdapterSpec(), seed=0, device=torch.device("cpu"))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("model.path: ")
    return message


@pytest.fixture
def copied(causal_lm_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(causal_lm_folder, tmp_path / "copy"))


def test_a_model_folder_is_taken(causal_lm_folder: Path) -> None:
    """Prevents the refusals below from being proved by a check that refuses everything."""
    assert load_config(ModelSpec(path=str(causal_lm_folder))).model_type == "llama"


@pytest.mark.parametrize("path", ["missing", "someone/some-model"])
def test_what_is_no_folder_is_refused_without_asking_a_hub(path: str) -> None:
    """Prevents a mistyped path from becoming a download."""
    assert f"{path} is no folder" in refusal(path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """Prevents a traceback for a folder that is no model."""
    assert "give a folder with config.json" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "no_such_model"}'])
def test_a_config_that_cannot_be_read_is_refused(text: str, copied: Path) -> None:
    """Prevents a traceback for a broken or foreign config.json."""
    (copied / "config.json").write_text(text)
    assert "is no model" in refusal(copied)


def test_a_folder_without_weights_or_with_a_pickle_is_refused(copied: Path) -> None:
    """Prevents a failure after the first work, and code in a pickle from being run."""
    (copied / "model.safetensors").unlink()
    torch.save({}, copied / "pytorch_model.bin")
    assert "give a folder with model.safetensors" in refusal(copied)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_folder_without_a_tokenizer_is_refused(family: str, tmp_path: Path) -> None:
    """Prevents a traceback, or the tokenizer without a single word that some classes make up."""
    build_causal_lm(tmp_path, family=family)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path), setting="model.path")
    assert "holds no tokenizer" in refusal(tmp_path)


def _plain_encoder(folder: Path) -> str:
    build_encoder(folder)
    return "BertModel"


def _encoder_with_lm_head(folder: Path) -> str:
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertLMHeadModel(config).save_pretrained(folder)
    return "BertLMHeadModel"


def _encoder_decoder(folder: Path) -> str:
    T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(folder)
    return "T5ForConditionalGeneration"


def _nameless_encoder(folder: Path) -> str:
    DistilBertConfig().save_pretrained(folder)
    return "distilbert"


def test_a_window_wider_than_the_positions_is_refused(tmp_path: Path) -> None:
    """Prevents an index out of range at the first long text, which on a GPU ends the process."""
    build_causal_lm(tmp_path, family="gpt2", n_positions=64)
    with pytest.raises(UserError, match=r"^model\.max_tokens: 65 is more than the 64 .* give at most 64$"):
        load_config(ModelSpec(path=str(tmp_path), max_tokens=65))
    spec = ModelSpec(path=str(tmp_path), max_tokens=64)
    teacher = Teacher.load(spec, AdapterSpec(rank=2), seed=0, device=torch.device("cpu"))
    tokens = Tokens(tuple(range(3, 67)), 1, False)
    assert np.isfinite(teacher.gradients([tokens])).all()


@pytest.mark.parametrize(
    "build", [_plain_encoder, _encoder_with_lm_head, _encoder_decoder, _nameless_encoder]
)
def test_a_model_that_looks_at_both_sides_is_refused(build: Callable[[Path], str], tmp_path: Path) -> None:
    """Prevents gradients of a model that sees the answer, and padding that leaks into examples."""
    name = build(tmp_path)
    assert f"is a {name}, not a causal LM" in refusal(tmp_path)


def test_code_in_a_models_folder_is_not_run_unless_asked_for(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a downloaded folder from running its own code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (copied / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((copied / "config.json").read_text())
    config |= {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    }
    (copied / "config.json").write_text(json.dumps(config))
    assert "is no model" in refusal(copied)
    assert not (tmp_path / "modules").exists()
    spec = ModelSpec(path=str(copied), trust_remote_code=True)
    teacher = Teacher.load(spec, AdapterSpec(rank=2), seed=0, device=torch.device("cpu"))
    assert type(teacher.model).__name__ == "OwnForCausalLM"


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_bfloat16_is_computed_with_on_a_cpu_only_where_it_has_instructions_for_it(
    capabilities: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents arithmetic that is emulated, several times slower than float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    cpu = torch.device("cpu")
    assert arithmetic_dtype(torch.bfloat16, cpu) is expected
    assert arithmetic_dtype(torch.float32, cpu) is torch.float32
    assert arithmetic_dtype(torch.bfloat16, torch.device("cuda")) is torch.bfloat16


def test_a_cpu_without_bfloat16_computes_with_the_same_rounded_weights(
    causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a fallback that explains another model than the one that was asked for."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    spec = ModelSpec(path=str(causal_lm_folder), dtype="bfloat16")
    teacher = Teacher.load(spec, AdapterSpec(rank=2), seed=0, device=torch.device("cpu"))
    numbers = [*teacher.model.parameters(), *(w.a for w in teacher.weights)]
    assert {n.dtype for n in numbers} == {torch.float32}
    assert all(torch.equal(n, n.bfloat16().float()) for n in numbers)


def test_weights_of_16_bits_leave_rotary_frequencies_as_precise_as_the_model_keeps_them(
    causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents positions far into a text from being turned by angles that are off by more than a radian."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    spec = ModelSpec(path=str(causal_lm_folder), dtype="bfloat16")
    model = load_model(spec, torch.device("cpu"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    exact = load_model(ModelSpec(path=str(causal_lm_folder)), torch.device("cpu"))
    kept, expected = (dict(m.named_buffers())["model.rotary_emb.inv_freq"] for m in (model, exact))
    assert torch.equal(kept, expected)


def test_gradient_checkpointing_is_refused_where_there_are_no_layers_for_it(
    causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a setting that saves no memory and says nothing."""
    monkeypatch.setattr("influcoder_ray.gradients.loading.GradientCheckpointingLayer", torch.nn.Bilinear)
    spec = ModelSpec(path=str(causal_lm_folder), gradient_checkpointing=True)
    with pytest.raises(UserError, match=r"model\.gradient_checkpointing: .* no layers that can be run again"):
        Teacher.load(spec, AdapterSpec(rank=2), seed=0, device=torch.device("cpu"))
