"""Which models' examples can be packed, and that attention stays inside each of them."""

from typing import Any

import pytest
import torch
from tiny import causal_config, causal_lm
from torch.nn import functional
from transformers import (
    BloomConfig,
    GlmMoeDsaConfig,
    GPTNeoConfig,
    GptOssConfig,
    Lfm2Config,
    Llama4TextConfig,
    MistralConfig,
    PhimoeConfig,
    PretrainedConfig,
    StableLmConfig,
)

from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.attention import CannotPack, _packed_attention, inputs_of, why_not_packed
from influcoder_ray.gradients.layout import Run, lay_out
from influcoder_ray.gradients.memory import predict_memory
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def varied(config: PretrainedConfig) -> torch.nn.Module:
    """A model whose matrices are far from their small initial values, so that leaks show."""
    model = causal_lm(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


# A mixture of experts that looks at a choice of tokens.
SPARSE = GlmMoeDsaConfig(
    **SIZES | {"num_key_value_heads": 4},
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_rope_head_dim=4,
    qk_nope_head_dim=8,
    v_head_dim=8,
    index_n_heads=2,
    index_head_dim=8,
    index_topk=4,
    moe_intermediate_size=24,
    n_routed_experts=4,
    num_experts_per_tok=2,
    first_k_dense_replace=1,
)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BloomConfig(**SIZES, n_layer=2, n_head=4), "the model takes no positions"),
        (
            GptOssConfig(**SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
            "the model has attention sinks",
        ),
        (StableLmConfig(**SIZES), "the model does not hand arguments on to its attention"),
        (
            # Convolutions reach over the border between two examples.
            Lfm2Config(**(SIZES | {"num_hidden_layers": 3}), layer_types=["conv", "full_attention", "conv"]),
            "its packed examples see each other",
        ),
        (
            # It would build the masks of a whole row out of a table as long as its positions.
            GPTNeoConfig(
                vocab_size=512, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]]
            ),
            "the model computes its attention itself, or has none",
        ),
        (SPARSE, "the model does not run without a mask ('NoneType' object is not subscriptable)"),
    ],
    ids=["positions", "sinks", "arguments", "convolutions", "own attention", "mask"],
)
def test_a_model_that_cannot_keep_packed_examples_apart_is_found_out_and_left_as_it_was(
    config: PretrainedConfig, reason: str
) -> None:
    """Prevents influence that leaks from one document into the next, silently."""
    model = varied(config)
    before = model.config._attn_implementation
    assert why_not_packed(model, 7) == reason
    assert model.config._attn_implementation == before


PHIMOE = PhimoeConfig(**SIZES, num_local_experts=2, num_experts_per_tok=2, sliding_window=12)
LLAMA4 = Llama4TextConfig(
    **SIZES, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=12
)
MISTRAL = MistralConfig(**SIZES, sliding_window=12)


@pytest.mark.parametrize(
    ("config", "longest", "packs"),
    [(PHIMOE, 12, True), (PHIMOE, 24, False), (LLAMA4, 24, False), (MISTRAL, 24, True)],
    ids=["as long as it looks", "masks", "chunks", "told"],
)
def test_a_model_packs_texts_longer_than_it_looks_only_if_it_tells_how_far(
    config: PretrainedConfig, longest: int, packs: bool
) -> None:
    """Prevents tokens that look back farther packed than padded: the masks that say so are left out."""
    model = varied(config)
    why = why_not_packed(model, longest)
    assert why == (None if packs else "the model does not tell its attention how far to look")
    tokens = [Tokens(tuple(range(3, 3 + longest)), 1, False), Tokens((6, 7, 8), 1, False)]
    logits = []
    for packed in (False, True):
        layout = lay_out(tokens, packed=packed, device=CPU)
        with torch.no_grad(), inputs_of(model, layout) as arguments:
            logits.append(model(**arguments, use_cache=False).logits.flatten(0, -2)[layout.labelled])
    difference = float((logits[1] - logits[0]).norm() / logits[0].norm())
    assert (difference < 1e-4) == packs


def test_a_batch_leaves_the_models_own_attention_behind_it() -> None:
    """Prevents a model that its owner can no longer use, or a second teacher that cannot pad."""
    model = causal_lm(causal_config("llama"))
    before = model.config._attn_implementation
    tokens = [Tokens((3, 4, 5), 1, False), Tokens((6, 7), 1, False)]
    packed = lay_out(tokens, packed=True, device=CPU)
    with inputs_of(model, packed) as arguments:
        assert model.config._attn_implementation != before
        model(**arguments)
    assert model.config._attn_implementation == before
    with pytest.raises(RuntimeError, match="fault"), inputs_of(model, packed):
        raise RuntimeError("fault")
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("groups", [1, 2])
def test_each_example_attends_to_its_own_past_alone(window: int | None, groups: int) -> None:
    """Prevents a look ahead, a look into a neighbour, a window one too wide, or heads mixed up."""
    generator = torch.Generator().manual_seed(0)
    runs = (Run(2, 5), Run(1, 2), Run(3, 1))
    lengths = [5, 5, 2, 1, 1, 1]
    query = torch.randn(1, 4, sum(lengths), 8, generator=generator)
    key, value = torch.randn(2, 1, 4 // groups, sum(lengths), 8, generator=generator)
    found, _ = _packed_attention(
        torch.nn.Identity(), query, key, value, None, scaling=0.3, sliding_window=window, packed_runs=runs
    )
    assert found.shape == (1, sum(lengths), 4, 8)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(sum(lengths))
    back = place[:, None] - place
    seen = (document[:, None] == document) & (back >= 0) & (back < (window or 100))
    scores = 0.3 * query @ key.repeat_interleave(groups, 1).transpose(2, 3)
    weights = functional.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)
    expected = (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "extra",
    [{"softcap": 2.0}, {"s_aux": torch.zeros(4)}, {"position_bias": torch.zeros(1)}],
    ids=["cap", "sinks", "bias"],
)
def test_what_packed_attention_does_not_compute_it_refuses(extra: dict[str, Any]) -> None:
    """Prevents a part of a model's attention from being left out in silence."""
    sides = torch.zeros(3, 1, 4, 2, 8)
    with pytest.raises(CannotPack, match="the model"):
        _packed_attention(torch.nn.Identity(), *sides, None, packed_runs=(Run(1, 2),), **extra)
    with pytest.raises(CannotPack, match="masks its attention itself"):
        _packed_attention(torch.nn.Identity(), *sides, torch.zeros(1), packed_runs=(Run(1, 2),))


def test_memory_is_predicted_of_a_model_that_does_not_run_without_a_mask() -> None:
    """Prevents a traceback on a GPU, where a batch is sized before anything is loaded."""
    adapter = AdapterSpec(rank=2, targets=("o_proj",))
    found = predict_memory(SPARSE, ModelSpec(path="-"), adapter, tokens=24, examples=2, width=1024)
    assert found.total_bytes > found.weights_bytes > 0
