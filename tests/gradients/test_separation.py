"""A model that mixes the examples of a batch, or looks ahead, is refused before any work."""

from pathlib import Path

import pytest
import torch
from tiny import CAUSAL_CONFIGS, build_causal_lm, causal_config, causal_lm
from transformers import XLNetConfig

from influcoder_ray.errors import UserError
from influcoder_ray.gradients.adapter import find_targets
from influcoder_ray.gradients.attention import why_not_packed
from influcoder_ray.gradients.separation import refuse_mixing
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Teacher

ADAPTER = AdapterSpec(rank=2)


@pytest.mark.parametrize("family", CAUSAL_CONFIGS)
def test_models_that_keep_examples_apart_are_taken(family: str) -> None:
    """Prevents the refusals below from being proved by a check that refuses everything."""
    model = causal_lm(causal_config(family))
    targets = find_targets(model.config, ADAPTER)
    refuse_mixing(model, targets, packed=False, path="-")
    if why_not_packed(model, 7) is None:
        refuse_mixing(model, targets, packed=True, path="-")


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
        refuse_mixing(model, targets, packed=False, path="-")
