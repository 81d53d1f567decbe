"""What an adapter leaves out of a model is counted from the model's structure, and named."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import CAUSAL_CONFIGS, causal_config, causal_lm
from transformers import GptOssConfig, MixtralConfig, PretrainedConfig, Qwen3MoeConfig

from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.adapter import adapter_weights, find_targets
from influcoder_ray.gradients.coverage import LeftOut, coverage
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Teacher

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
CPU = torch.device("cpu")


def mixture(family: str) -> PretrainedConfig:
    """A tiny mixture of four experts, two of them at work on each token."""
    sizes = {
        "vocab_size": 512,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts_per_tok": 2,
        "initializer_range": 0.2,
        "pad_token_id": 0,
    }
    if family == "gpt_oss":
        return GptOssConfig(**sizes, intermediate_size=16, num_local_experts=4)
    if family == "mixtral":
        return MixtralConfig(**sizes, intermediate_size=16, num_local_experts=4)
    return Qwen3MoeConfig(**sizes, intermediate_size=48, moe_intermediate_size=16, num_experts=4)


# Of each of two layers: query and output 32 x 32, key and value 16 x 32.
ATTENTION_PARAMETERS = 2 * (2 * 32 * 32 + 2 * 16 * 32)


@pytest.mark.parametrize("family", CAUSAL_CONFIGS)
def test_all_linear_leaves_nothing_out_of_a_dense_model(family: str) -> None:
    """Prevents a warning where there is nothing to warn of, which teaches people to skip it."""
    config = causal_config(family)
    found = coverage(config, find_targets(config, AdapterSpec()))
    assert found.left_out == ()
    assert found.share_left_out == 0
    assert found.sentence() == ""
    model = causal_lm(config)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert found.adapted_parameters + found.embedding_parameters == matrices


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_fused_experts_are_named_with_their_share(family: str) -> None:
    """Prevents a user from trusting gradients that are blind to most of the model, unknowingly."""
    config = mixture(family)
    found = coverage(config, find_targets(config, AdapterSpec(targets=ATTENTION)))
    assert found.adapted_parameters == ATTENTION_PARAMETERS
    assert found.left_out == (
        LeftOut("model.layers.*.mlp.experts.gate_up_proj", 2 * 4 * 32 * 32, "fused"),
        LeftOut("model.layers.*.mlp.experts.down_proj", 2 * 4 * 32 * 16, "fused"),
        LeftOut("model.layers.*.mlp.gate.weight", 2 * 4 * 32, "other"),
    )
    assert found.embedding_parameters == 2 * 512 * 32
    assert found.share_left_out == pytest.approx(12_544 / (12_544 + 6_144))
    assert found.sentence() == (
        "the adapter leaves out 67.1% of the model's weight matrices: "
        "model.layers.*.mlp.experts.gate_up_proj, model.layers.*.mlp.experts.down_proj, "
        "model.layers.*.mlp.gate.weight (fused weights are no linear modules; "
        "weights of modules that are not linear)"
    )


def test_biases_of_experts_are_no_weight_matrices() -> None:
    """Prevents a share that differs between models whose experts have biases and those that have none."""
    config = mixture("gpt_oss")
    found = coverage(config, find_targets(config, AdapterSpec()))
    assert [part.name.rpartition(".")[2] for part in found.left_out] == [
        "gate_up_proj",
        "down_proj",
        "weight",
    ]
    assert found.share_left_out == pytest.approx(12_544 / (12_544 + 6_144))


def test_named_targets_leave_the_other_linear_modules_out() -> None:
    """Prevents an adapter on a corner of the model from passing for one on the whole."""
    config = causal_config("llama")
    found = coverage(config, find_targets(config, AdapterSpec(targets=("q_proj", "down_proj"))))
    attention, feed_forward = 32 * 32, 32 * 48
    assert found.adapted_parameters == 2 * (attention + feed_forward)
    assert {part.name: part.parameters for part in found.left_out} == {
        "model.layers.*.mlp.gate_proj": 2 * feed_forward,
        "model.layers.*.mlp.up_proj": 2 * feed_forward,
        "model.layers.*.self_attn.o_proj": 2 * attention,
        "model.layers.*.self_attn.k_proj": 2 * attention // 2,
        "model.layers.*.self_attn.v_proj": 2 * attention // 2,
    }
    assert {part.kind for part in found.left_out} == {"linear"}
    assert [part.parameters for part in found.left_out] == sorted(
        (part.parameters for part in found.left_out), reverse=True
    )
    assert found.sentence().endswith("and 1 more (linear modules that are no targets)")


def test_tied_embeddings_count_once() -> None:
    """Prevents the output head from being counted as a weight matrix, or a second time."""
    for tied, times in ((True, 1), (False, 2)):
        config = causal_config("llama", tie_word_embeddings=tied)
        found = coverage(config, find_targets(config, AdapterSpec()))
        assert found.embedding_parameters == times * 512 * 32


def test_one_target_of_one_layer_covers_that_layer_alone() -> None:
    """Prevents layers that fold to one name from being taken for one module."""
    config = causal_config("llama")
    found = coverage(config, find_targets(config, AdapterSpec(targets=r".*layers\.1\.mlp\.up_proj")))
    assert found.adapted_parameters == 32 * 48
    assert {p.name: p.parameters for p in found.left_out}["model.layers.*.mlp.up_proj"] == 32 * 48


class NoTokenizer:
    """Stands where examples come as tokens already."""

    chat_template = None


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_in_a_mixture_of_experts_each_gradient_is_autograds_own(family: str) -> None:
    """Prevents the routing of tokens to experts from mixing up whose gradient is whose."""
    model = causal_lm(mixture(family))
    spec = AdapterSpec(rank=4, targets=ATTENTION)
    weights = adapter_weights(find_targets(model.config, spec), spec, seed=1, device=CPU, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    tokens = [
        Tokens(tuple(torch.randint(3, 500, (n,), generator=generator).tolist()), prompt, False)
        for n, prompt in [(5, 2), (12, 7), (2, 1), (9, 1), (20, 15), (20, 1)]
    ]
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=list(ATTENTION))
    peft_model = get_peft_model(copy.deepcopy(model), lora).eval()
    modules = dict(peft_model.get_base_model().named_modules())
    layers = [modules[w.target.name] for w in weights]
    for layer, w in zip(layers, weights, strict=True):
        layer.lora_A["default"].weight.data.copy_(w.a)
    teacher = Teacher(model, NoTokenizer(), weights, ModelSpec(path="-", tokens_per_batch=40))
    for t, found in zip(tokens, teacher.gradients(tokens), strict=True):
        peft_model.zero_grad()
        ids = torch.tensor([t.ids])
        labels = ids.clone()
        labels[0, : t.labelled_from] = -100
        peft_model(input_ids=ids, labels=labels).loss.backward()
        alone = torch.cat([layer.lora_B["default"].weight.grad.flatten() for layer in layers]).numpy()
        assert np.linalg.norm(alone) > 1e-6
        assert np.linalg.norm(found - alone) <= 1e-5 * np.linalg.norm(alone)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_all_linear_takes_a_mixtures_linear_modules(family: str) -> None:
    """Prevents default targets from being refused, or from losing the linear modules beside experts."""
    config = mixture(family)
    found = coverage(config, find_targets(config, AdapterSpec()))
    assert found == coverage(config, find_targets(config, AdapterSpec(targets=ATTENTION)))
    dense = mixture("qwen3_moe")
    dense.mlp_only_layers = [0]
    found = coverage(dense, find_targets(dense, AdapterSpec()))
    assert found.adapted_parameters == ATTENTION_PARAMETERS + 3 * 32 * 48
