"""Which modules carry an adapter, what a fresh one holds, and which trained ones are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from tiny import causal_config, causal_lm

from influcoder_ray.errors import UserError
from influcoder_ray.gradients.adapter import AdapterWeights, adapter_weights, find_targets
from influcoder_ray.gradients.specs import AdapterSpec

CPU = torch.device("cpu")
LLAMA = causal_config("llama")


def fresh(seed: int = 0, dtype: torch.dtype = torch.float32, **spec: Any) -> dict[str, AdapterWeights]:
    adapter = AdapterSpec(**({"rank": 8} | spec))
    weights = adapter_weights(find_targets(LLAMA, adapter), adapter, seed=seed, device=CPU, dtype=dtype)
    return {w.target.name: w for w in weights}


def refusal(spec: AdapterSpec, config: Any = LLAMA) -> str:
    """The one line with which a spec is refused."""
    with pytest.raises(UserError) as caught:
        adapter_weights(find_targets(config, spec), spec, seed=0, device=CPU, dtype=torch.float32)
    message = str(caught.value)
    assert "\n" not in message
    return message


def saved(folder: Path, **lora: Any) -> AdapterSpec:
    """An adapter of the tiny Llama, saved by PEFT."""
    lora = {"r": 2, "target_modules": ["q_proj"]} | lora
    get_peft_model(causal_lm(LLAMA), LoraConfig(**lora)).save_pretrained(folder)
    return AdapterSpec(path=str(folder))


def test_a_fresh_a_is_a_function_of_seed_and_module_name_alone() -> None:
    """Prevents workers that choose other modules, or another order, from using another projection."""
    all_linear, one = fresh(seed=4), fresh(seed=4, targets=(r"o_proj",))
    assert len(one) == LLAMA.num_hidden_layers
    for name, w in one.items():
        assert torch.equal(w.a, all_linear[name].a)


def test_a_fresh_a_differs_by_module_and_seed() -> None:
    """Prevents projections that repeat from module to module, and seeds that change nothing."""
    here, there = fresh(seed=0), fresh(seed=1)
    a = here["model.layers.0.self_attn.q_proj"].a
    for other in (
        here["model.layers.1.self_attn.q_proj"].a,
        here["model.layers.0.self_attn.o_proj"].a,
        there["model.layers.0.self_attn.q_proj"].a,
    ):
        assert torch.corrcoef(torch.stack([a.flatten(), other.flatten()]))[0, 1].abs() < 0.3


def test_a_fresh_a_fills_pefts_own_range() -> None:
    """Prevents a scale of A that peft would not have begun with."""
    for w in fresh(seed=2).values():
        bound = w.target.in_features**-0.5
        assert w.a.shape == (8, w.target.in_features)
        assert 0.9 * bound < w.a.abs().max() <= bound
        assert w.a.mean().abs() < 0.2 * bound
        assert w.a.std() == pytest.approx(bound / 3**0.5, rel=0.15)


def test_a_fresh_adapter_has_no_b_and_gradients_for_b_alone() -> None:
    """Prevents half of a sketch's input from being the zeros of dL/dA."""
    for w in fresh(dtype=torch.bfloat16).values():
        assert w.b is None
        assert w.a.dtype == torch.bfloat16
        assert w.gradient_size == w.target.out_features * 8


def test_all_linear_is_every_linear_module_but_the_output_head() -> None:
    """Prevents a silent change of what "all-linear" means, which would change every gradient."""
    model = causal_lm(LLAMA)
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    assert list(fresh()) == linear
    for name, w in fresh().items():
        assert (w.target.out_features, w.target.in_features) == model.get_submodule(name).weight.shape
        assert w.target.scaling == 2


@pytest.mark.parametrize("targets", [("no_such_proj",), r"model\.nothing", ("layers",)])
def test_targets_that_match_nothing_usable_are_refused(targets: Any) -> None:
    """Prevents a run without gradients, or a traceback from peft."""
    message = refusal(AdapterSpec(targets=targets))
    assert message.startswith("adapter.targets: ")
    assert "all-linear" in message


def test_a_pattern_that_is_none_is_refused() -> None:
    """Prevents a traceback for a slip of the keyboard."""
    assert refusal(AdapterSpec(targets="q_proj(")).startswith("adapter.targets: q_proj( fits no module")


@pytest.mark.parametrize(
    ("target", "named"), [("embed_tokens", "is a Embedding"), ("lm_head", "is the output head")]
)
def test_an_embedding_and_the_output_head_are_refused(target: str, named: str) -> None:
    """Prevents hooks made for token positions from meeting ids, or rows that are no examples."""
    message = refusal(AdapterSpec(targets=("q_proj", target)))
    assert named in message
    assert target in message


@pytest.mark.parametrize(
    ("lora", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_adapter_that_is_more_than_plain_lora_is_refused(
    lora: dict[str, Any], named: str, tmp_path: Path
) -> None:
    """Prevents gradients of another model than the one that was trained."""
    message = refusal(saved(tmp_path, **lora))
    assert message.startswith("adapter.path: ")
    assert f"uses {named}," in message


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "IA3"),
        (lambda: PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2), "PROMPT_TUNING"),
        (lambda: AdaLoraConfig(target_modules=["q_proj"], total_step=10), "ADALORA"),
    ],
    ids=["ia3", "prompt", "adalora"],
)
def test_an_adapter_that_is_no_lora_is_refused(make: Callable[[], Any], kind: str, tmp_path: Path) -> None:
    """Prevents the formula of LoRA's gradients from being used where it does not hold."""
    get_peft_model(causal_lm(LLAMA), make()).save_pretrained(tmp_path)
    assert f"is a {kind} adapter; give a LoRA adapter" in refusal(AdapterSpec(path=str(tmp_path)))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    """Prevents shapes that clash in the middle of a run, or layers left without their adapter."""
    spec = saved(tmp_path)
    deeper = causal_config("llama", num_hidden_layers=3)
    shallower = causal_config("llama", num_hidden_layers=1)
    wider = causal_config("llama", hidden_size=64)
    for config in (deeper, shallower, wider):
        message = refusal(spec, config)
        assert "was trained on another model (base_model.model.model.layers." in message


def test_a_folder_that_holds_no_adapter_is_refused_without_asking_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a mistyped path from becoming a download."""
    monkeypatch.setattr("huggingface_hub.file_download.http_get", pytest.fail)
    for path in (tmp_path, tmp_path / "missing", Path("someone/adapter")):
        assert "is no PEFT adapter" in refusal(AdapterSpec(path=str(path)))


def test_an_adapter_in_a_pickle_is_refused(tmp_path: Path) -> None:
    """Prevents code in an adapter's file from being run."""
    spec = saved(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "adapter_model.bin")
    weights.unlink()
    assert "give a folder with adapter_model.safetensors" in refusal(spec)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"peft_type": "NO_SUCH"}'])
def test_an_adapter_config_that_peft_cannot_read_is_refused(text: str, tmp_path: Path) -> None:
    """Prevents a traceback for a broken file."""
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(text)
    assert refusal(AdapterSpec(path=str(tmp_path))).startswith(f"adapter.path: {tmp_path}")


def test_how_an_adapters_training_began_does_not_matter_where_the_model_was_left_alone(
    tmp_path: Path,
) -> None:
    """Prevents a needless computation of first weights, on tensors without data, that would fail."""
    spec = saved(tmp_path)
    config = tmp_path / "adapter_config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"init_lora_weights": "orthogonal"}))
    weights = adapter_weights(find_targets(LLAMA, spec), spec, seed=0, device=CPU, dtype=torch.float32)
    trained = load_file(tmp_path / "adapter_model.safetensors")
    for w in weights:
        assert torch.equal(w.a, trained[f"base_model.model.{w.target.name}.lora_A.weight"])
        assert w.b is not None
        assert torch.equal(w.b, trained[f"base_model.model.{w.target.name}.lora_B.weight"])
