"""The token budget where the settings do not say one."""

from types import SimpleNamespace

import pytest
import torch
from tiny import causal_config

from influcoder_ray.errors import UserError
from influcoder_ray.gradients import budget
from influcoder_ray.gradients.budget import CPU_TOKENS, MOST_TOKENS, tokens_per_batch
from influcoder_ray.gradients.dry_run import Unpredictable
from influcoder_ray.gradients.memory import predict_memory
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec

GPU = torch.device("cuda")
CONFIG = causal_config("llama")
SPEC = ModelSpec(path="-", max_tokens=64)
ADAPTER = AdapterSpec(rank=2)


def on_a_card_of(memory_bytes: int, monkeypatch: pytest.MonkeyPatch) -> int:
    properties = SimpleNamespace(total_memory=memory_bytes)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return tokens_per_batch(CONFIG, SPEC, ADAPTER, GPU)


def test_a_budget_in_the_settings_is_taken_as_it_is() -> None:
    """Prevents a user's own figure from being overruled by a guess."""
    spec = SPEC.model_copy(update={"tokens_per_batch": 96})
    assert tokens_per_batch(CONFIG, spec, ADAPTER, GPU) == 96
    assert tokens_per_batch(CONFIG, SPEC, ADAPTER, torch.device("cpu")) == CPU_TOKENS


def test_a_larger_card_takes_larger_batches_that_fit_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a card that is mostly idle, or one that runs out of memory at the first batch."""
    budgets = [on_a_card_of(size << 20, monkeypatch) for size in (50, 200, 800)]
    assert budgets == sorted(set(budgets))
    for size, tokens in zip((50, 200, 800), budgets, strict=True):
        needed = predict_memory(CONFIG, SPEC, ADAPTER, tokens=tokens, examples=tokens // 64, width=262_144)
        assert needed.total_bytes <= size << 20
    assert on_a_card_of(1 << 50, monkeypatch) == MOST_TOKENS


def test_a_card_too_small_for_one_example_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a stage that sets every row aside, one by one."""
    with pytest.raises(UserError, match=r"model\.max_tokens: one example of 64 tokens needs"):
        on_a_card_of(1 << 20, monkeypatch)


def test_a_model_that_cannot_be_predicted_gets_a_budget_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a model from being refused for want of a prediction."""

    def unpredictable(*args: object, **kwargs: object) -> int:
        raise Unpredictable("it depends on numbers")

    monkeypatch.setattr(budget, "tokens_per_batch_within", unpredictable)
    assert 1_024 < on_a_card_of(80 << 30, monkeypatch) <= MOST_TOKENS
