"""Fine-tuning: peft's own training, the same each time, whatever memory there is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny import build_causal_lm
from transformers import AutoModelForCausalLM

from influcoder_ray.errors import RunFailed
from influcoder_ray.examples import Example
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.adapter import adapter_weights, find_targets
from influcoder_ray.gradients.loading import load_config
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.retraining.finetuning import FineTuner, step_rows, trained_adapter

CPU = torch.device("cpu")
RATE, SEED = 0.01, 3
ADAPTER = AdapterSpec(rank=2)
EXAMPLES = [
    Example(str(i), "Why? " * (i % 4), f"Because of {'that and ' * (i % 5)}this.", f"f:{i}") for i in range(9)
]
CONTENTS = [e.content_hash for e in EXAMPLES]
STEPS = step_rows(CONTENTS, 5, 4, SEED)


def spec_of(folder: Path, **fields: Any) -> ModelSpec:
    return ModelSpec(path=str(folder), max_tokens=32, **fields)


def load(folder: Path, adapter: AdapterSpec = ADAPTER, **fields: Any) -> FineTuner:
    return FineTuner.load(spec_of(folder, **fields), adapter, device=CPU)


def fine_tune(tuner: FineTuner, seed: int = SEED) -> tuple[list[float], np.ndarray]:
    """The loss of each step, and of every example afterwards."""
    tokens = tuner.tokens(EXAMPLES)
    return tuner.train(tokens, STEPS, learning_rate=RATE, seed=seed), tuner.losses(tokens)


def loss_alone(model: torch.nn.Module, tokens: Tokens) -> torch.Tensor:
    """The loss that transformers computes for one example, in a batch of its own."""
    ids = torch.tensor([tokens.ids])
    labels = ids.clone()
    labels[0, : tokens.labelled_from] = -100
    loss: torch.Tensor = model(input_ids=ids, labels=labels).loss
    return loss


def peft_fine_tune(folder: Path, tokens: list[Tokens], seed: int) -> tuple[list[float], np.ndarray]:
    """The same by peft, torch and transformers alone, one example at a time."""
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", bias="none")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora)
    targets = find_targets(load_config(spec_of(folder)), ADAPTER)
    first = adapter_weights(targets, ADAPTER, seed=seed, device=CPU, dtype=torch.float32)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for held in first:
            named[f"base_model.model.{held.target.name}.lora_A.default.weight"].copy_(held.a)
    optimizer = torch.optim.AdamW([p for p in named.values() if p.requires_grad], lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(STEPS))
    losses = []
    for rows in STEPS:
        optimizer.zero_grad()
        loss = torch.stack([loss_alone(model, tokens[row]) for row in rows]).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    with torch.no_grad():
        return losses, np.array([float(loss_alone(model, t)) for t in tokens])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("budget", [None, 40])
def test_each_step_is_that_of_pefts_own_training(family: str, budget: int | None, tmp_path: Path) -> None:
    """Prevents a loop that trains something else: other labels, weights, rates, examples that see each other.

    gemma2 cannot be packed; a budget of 40 tokens gathers a step's gradient over several batches.
    """
    folder = build_causal_lm(tmp_path, family=family)
    tuner = load(folder, tokens_per_batch=budget)
    steps, after = fine_tune(tuner)
    expected_steps, expected_after = peft_fine_tune(folder, tuner.tokens(EXAMPLES), SEED)
    np.testing.assert_allclose(steps, expected_steps, rtol=1e-4)
    np.testing.assert_allclose(after, expected_after, rtol=1e-3)
    assert steps[-1] < steps[0] - 0.05


def test_a_fine_tune_is_the_same_whatever_was_trained_before_it(causal_lm_folder: Path) -> None:
    """Prevents figures that depend on which worker did which fine-tune after which other."""
    fresh = fine_tune(load(causal_lm_folder))
    used = load(causal_lm_folder)
    other = fine_tune(used, seed=8)
    again = fine_tune(used)
    assert again[0] == fresh[0]
    np.testing.assert_array_equal(again[1], fresh[1])
    assert other[0] != fresh[0]


def test_before_the_first_step_the_model_is_the_one_that_was_loaded(causal_lm_folder: Path) -> None:
    """Prevents a "before" that an adapter, or an earlier fine-tune, has moved."""
    tuner = load(causal_lm_folder)
    fine_tune(tuner)
    tuner.begin(SEED)
    tokens = tuner.tokens(EXAMPLES)
    plain = AutoModelForCausalLM.from_pretrained(causal_lm_folder).eval()
    with torch.no_grad():
        expected = [float(loss_alone(plain, t)) for t in tokens]
    np.testing.assert_allclose(tuner.losses(tokens), expected, rtol=1e-5)


def test_a_trained_adapter_is_trained_further(causal_lm_folder: Path, tmp_path: Path) -> None:
    """Prevents a run that explains a fine-tuned model from proving something about the one below it."""
    torch.manual_seed(1)
    lora = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    trained = get_peft_model(AutoModelForCausalLM.from_pretrained(causal_lm_folder), lora).eval()
    trained.save_pretrained(tmp_path)
    adapter = trained_adapter(AdapterSpec(path=str(tmp_path)), 8)
    tuner = load(causal_lm_folder, adapter)
    tuner.begin(SEED)
    tokens = tuner.tokens(EXAMPLES)
    with torch.no_grad():
        expected = [float(loss_alone(trained, t)) for t in tokens]
    np.testing.assert_allclose(tuner.losses(tokens), expected, rtol=1e-5)
    steps, after = fine_tune(tuner)
    assert steps[0] == pytest.approx(np.mean([expected[row] for row in STEPS[0]]), rel=1e-5)
    assert after.mean() < np.mean(expected)
    assert trained_adapter(AdapterSpec(rank=4, targets=("q_proj",)), 8) == AdapterSpec(
        rank=8, targets=("q_proj",)
    )


def test_gradient_checkpointing_changes_nothing_but_the_memory(causal_lm_folder: Path) -> None:
    """Prevents layers that run again from seeing another batch, or none of its attention."""
    plain, checkpointed = (
        fine_tune(load(causal_lm_folder, gradient_checkpointing=on)) for on in (False, True)
    )
    np.testing.assert_allclose(checkpointed[0], plain[0], rtol=1e-5)
    np.testing.assert_allclose(checkpointed[1], plain[1], rtol=1e-4)


def test_bfloat16_weights_are_trained_by_adapters_of_full_precision(causal_lm_folder: Path) -> None:
    """Prevents steps that are too small for 8 bits from being lost, which bfloat16 adapters would lose."""
    exact, rounded = (fine_tune(load(causal_lm_folder, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    np.testing.assert_allclose(rounded[0], exact[0], rtol=0.02)
    np.testing.assert_allclose(rounded[1], exact[1], rtol=0.05)


@pytest.fixture
def limited(causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], FineTuner]:
    """A fine-tuner whose model runs out of memory above so many tokens."""

    def make(most_tokens: int) -> FineTuner:
        tuner = load(causal_lm_folder)
        forward: Callable[..., Any] = tuner._model.forward

        def fails(*args: Any, **kwargs: Any) -> Any:
            if kwargs["input_ids"].numel() > most_tokens:
                raise torch.OutOfMemoryError("fake")
            return forward(*args, **kwargs)

        monkeypatch.setattr(tuner._model, "forward", fails)
        return tuner

    return make


def test_out_of_memory_halves_the_budget_and_the_step_is_the_same(
    causal_lm_folder: Path, limited: Callable[[int], FineTuner]
) -> None:
    """Prevents a step whose gradient counts a part of its examples twice, or not at all."""
    plain, halved = fine_tune(load(causal_lm_folder)), fine_tune(limited(40))
    np.testing.assert_allclose(halved[0], plain[0], rtol=1e-5)
    np.testing.assert_allclose(halved[1], plain[1], rtol=1e-4)


def test_what_cannot_be_trained_says_why(causal_lm_folder: Path, limited: Callable[[int], FineTuner]) -> None:
    """Prevents an endless search for a budget, and losses that are no numbers in the figures."""
    with pytest.raises(RunFailed, match="an example alone does not fit the memory of cpu"):
        fine_tune(limited(3))
    tuner = load(causal_lm_folder)
    with pytest.raises(RunFailed, match=r"loss of step \d is .*: lower validate.learning_rate"):
        tuner.train(tuner.tokens(EXAMPLES), STEPS, learning_rate=1e30, seed=SEED)


@given(count=st.integers(1, 12), steps=st.integers(1, 10), size=st.integers(1, 7), seed=st.integers(0, 2**40))
def test_steps_pass_over_all_examples_alike_often(count: int, steps: int, size: int, seed: int) -> None:
    """Prevents examples that are never seen, and fine-tunes of fewer steps than the others."""
    names = [f"content {i}" for i in range(count)]
    found = step_rows(names, steps, size, seed)
    assert [len(rows) for rows in found] == [size] * steps
    seen = np.bincount(np.concatenate(found), minlength=count)
    assert seen.max() - seen.min() <= 1
    assert found == step_rows(names, steps, size, seed)
    assert step_rows(names, steps + 3, size, seed)[:steps] == found


@given(removed=st.sets(st.integers(0, 14), max_size=10), seed=st.integers(0, 99))
def test_taking_examples_out_leaves_the_order_of_the_others(removed: set[int], seed: int) -> None:
    """Prevents pairs of fine-tunes that differ by chance in more than what is compared."""
    names = [f"content {i}" for i in range(15)]
    kept = [name for i, name in enumerate(names) if i not in removed]
    whole = [names[row] for step in step_rows(names, 3, 5, seed) for row in step]
    part = [kept[row] for step in step_rows(kept, 1, len(kept), seed) for row in step]
    assert part == [name for name in whole if name in kept]
