"""A folder that holds no usable causal LM is refused in one line, before any work."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import build_causal_lm, build_encoder
from transformers import BertConfig, BertLMHeadModel, DistilBertConfig, T5Config

from influcoder_ray.errors import UserError
from influcoder_ray.examples.tokenizer import load_tokenizer
from influcoder_ray.gradients.loading import load_config
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
