"""Texts of a batch in one row have the states that they have when they are padded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
)

from influcoder_ray.encoder.packing import Packed, PackedOutputs, first_position, packing, why_not_packed

_SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
    # Wide enough that attention is far from uniform.
    "initializer_range": 0.2,
}


def _bert() -> torch.nn.Module:
    return BertModel(BertConfig(**_SIZES))


def _roberta() -> torch.nn.Module:
    return RobertaModel(RobertaConfig(**_SIZES | {"pad_token_id": 1}))


def _modernbert() -> torch.nn.Module:
    """It looks no farther than 4 tokens in two layers of three."""
    return ModernBertModel(
        ModernBertConfig(**_SIZES, local_attention=8, global_attn_every_n_layers=3, cls_token_id=1)
    )


FAMILIES = {"bert": _bert, "roberta": _roberta, "modernbert": _modernbert}


def built(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return built(request.param)


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_packed_texts_have_the_states_of_padded_ones(
    model: torch.nn.Module, lengths: list[int], seed: int
) -> None:
    """Prevents texts of one batch from seeing each other, or from losing their places."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, 211, mask.shape, generator=torch.Generator().manual_seed(seed))
    # RoBERTa tells padding by its id.
    ids = torch.where(mask.bool(), ids, model.config.pad_token_id)  # type: ignore[union-attr]
    packed = Packed.of(ids, mask, first_position=first_position(model))
    assert packed.ids.shape == packed.positions.shape == (1, sum(lengths))
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        with packing(model):
            found = PackedOutputs(packed, model(**packed.arguments, output_hidden_states=True))
    real = mask.bool()
    for layer, states in enumerate(expected.hidden_states):
        torch.testing.assert_close(found.hidden_states[layer][real], states[real], atol=2e-5, rtol=1e-4)
        assert not found.hidden_states[layer][~real].any()
    torch.testing.assert_close(
        found.last_hidden_state[real], expected.last_hidden_state[real], atol=2e-5, rtol=1e-4
    )


def test_models_that_keep_texts_apart_are_found_to(model: torch.nn.Module) -> None:
    """Prevents the fast way from being lost without anybody's notice."""
    before = model.config._attn_implementation  # type: ignore[union-attr]
    assert why_not_packed(model) is None
    assert model.config._attn_implementation == before  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda: DistilBertModel(
                DistilBertConfig(vocab_size=211, dim=32, n_layers=1, n_heads=4, hidden_dim=48)
            ),
            "",
        ),
        (
            lambda: GPT2Model(GPT2Config(vocab_size=211, n_embd=32, n_layer=1, n_head=4)),
            "looks back alone",
        ),
    ],
)
def test_what_cannot_be_packed_is_found_out_by_trying(build: Any, reason: str) -> None:
    """Prevents vectors that mix the texts of a batch, from a model that nobody thought of."""
    torch.manual_seed(0)
    model = build().eval()
    found = why_not_packed(model)
    if reason:
        assert found is not None
        assert reason in found


def test_wrong_positions_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a RoBERTa's texts from being read two places off."""
    monkeypatch.setattr("influcoder_ray.encoder.packing.first_position", lambda model: 0)
    found = why_not_packed(built("roberta"))
    assert found is not None
    assert "positions" in found


def test_the_attention_is_given_back_after_a_fault(tmp_path: Path) -> None:
    """Prevents a model that, after a fault, mixes the texts of every later batch."""
    model = built("bert")
    before = model.config._attn_implementation  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="amid"), packing(model):
        raise RuntimeError("amid")
    assert model.config._attn_implementation == before  # type: ignore[union-attr]
