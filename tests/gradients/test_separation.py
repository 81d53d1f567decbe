"""A model that mixes the examples of a batch, or looks ahead, is refused before any work."""

from pathlib import Path

import pytest
import torch
from tiny import CAUSAL_CONFIGS, build_causal_lm, causal_config, causal_lm
from transformers import XLNetConfig, XmodConfig

from influcoder_ray.errors import UserError
from influcoder_ray.gradients.adapter import find_targets
from influcoder_ray.gradients.separation import refuse_mixing
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Teacher

ADAPTER = AdapterSpec(rank=2)


@pytest.mark.parametrize("family", CAUSAL_CONFIGS)
def test_models_that_keep_examples_apart_are_taken(family: str) -> None:
    """Prevents the refusals below from being proved by a check that refuses everything."""
    model = causal_lm(causal_config(family))
    refuse_mixing(model, find_targets(model.config, ADAPTER), path="-")


def test_a_model_that_looks_at_both_sides_under_a_causal_name_is_refused(tmp_path: Path) -> None:
    """Prevents gradients of answers that the model saw, which padding changes besides."""
    build_causal_lm(tmp_path)
    config = XLNetConfig(vocab_size=512, d_model=32, n_layer=2, n_head=4, d_inner=48, initializer_range=0.2)
    causal_lm(config).save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"^model\.path: .* changes with its neighbours in a batch or with"):
        Teacher.load(ModelSpec(path=str(tmp_path)), ADAPTER, seed=0, device=torch.device("cpu"))


def test_a_module_that_sees_time_before_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents tokens of one example from being booked on another where the model's answers are right."""
    model = causal_lm(causal_config("llama"))
    targets = find_targets(model.config, ADAPTER)
    feed_forward = model.get_submodule("model.layers.1.mlp")
    forward = feed_forward.forward
    monkeypatch.setattr(feed_forward, "forward", lambda x: forward(x.transpose(0, 1)).transpose(0, 1))
    with pytest.raises(UserError, match=r"\(model\.layers\.1\.mlp\.gate_proj\)"):
        refuse_mixing(model, targets, path="-")


def test_a_model_that_wants_more_than_tokens_is_refused(tmp_path: Path) -> None:
    """Prevents a traceback from a model that has to be told the language, say."""
    build_causal_lm(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = XmodConfig(vocab_size=512, languages=["a", "b"], is_decoder=True, **sizes)
    causal_lm(config).save_pretrained(tmp_path)  # type: ignore[operator]
    spec = ModelSpec(path=str(tmp_path), max_tokens=64)
    with pytest.raises(UserError, match=r"does not take token ids alone \(Input language unknown"):
        Teacher.load(spec, ADAPTER, seed=0, device=torch.device("cpu"))
