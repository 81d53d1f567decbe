"""The teacher over many batches: sketches, norms and losses that survive a lack of memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from influcoder_ray.examples import Example
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.layout import HEAD_ROWS
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Sketches, Teacher

CPU = torch.device("cpu")
SKETCH = CountSketch(1024, seed=3)
EXAMPLES = [
    Example(str(i), "Why? " * (i % 4), f"Because of {'that and ' * (i % 5)}this.", f"f:{i}")
    for i in range(14)
]


@pytest.fixture
def teacher(causal_lm_folder: Path) -> Teacher:
    spec = ModelSpec(path=str(causal_lm_folder), max_tokens=64, tokens_per_batch=200)
    return Teacher.load(spec, AdapterSpec(rank=2, targets=("q_proj", "down_proj")), seed=5, device=CPU)


@pytest.fixture
def tokens(teacher: Teacher) -> list[Tokens]:
    return teacher.tokens(EXAMPLES)


def limit_memory(teacher: Teacher, monkeypatch: pytest.MonkeyPatch, most_tokens: int) -> list[int]:
    """Let the model fail on batches above `most_tokens`; returns the list of sizes tried."""
    forward: Callable[..., Any] = teacher.model.forward
    sizes: list[int] = []

    def limited(*args: Any, **kwargs: Any) -> Any:
        sizes.append(kwargs["input_ids"].numel())
        if sizes[-1] > most_tokens:
            raise torch.OutOfMemoryError("fake")
        return forward(*args, **kwargs)

    monkeypatch.setattr(teacher.model, "forward", limited)
    return sizes


def assert_close(found: Sketches, expected: Sketches) -> None:
    np.testing.assert_allclose(found.sketches, expected.sketches, atol=1e-5)
    np.testing.assert_allclose(found.gradient_norms, expected.gradient_norms, rtol=1e-5)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)


def test_sketches_and_norms_are_those_of_the_exact_gradients(teacher: Teacher, tokens: list[Tokens]) -> None:
    """Prevents a module that is missing from the sketch or counted twice in the norm."""
    exact = torch.from_numpy(teacher.gradients(tokens))
    expected = torch.zeros(len(tokens), SKETCH.width)
    sizes = [w.target.out_features * w.target.rank for w in teacher.weights]
    norms = []
    for w, part in zip(teacher.weights, exact.split(sizes, dim=1), strict=True):
        transposed = part.unflatten(1, (w.target.out_features, w.target.rank)).transpose(1, 2)
        SKETCH.add(expected, transposed, f"{w.target.name}.lora_B")
        norms.append(part.norm(dim=1))
    found = teacher.sketch(tokens, SKETCH)
    np.testing.assert_allclose(found.module_norms, torch.stack(norms, 1), rtol=1e-5)
    assert teacher.modules == [w.target.name for w in teacher.weights]
    np.testing.assert_allclose(found.sketches, expected, atol=1e-5)
    np.testing.assert_allclose(found.gradient_norms, exact.norm(dim=1), rtol=1e-5)
    assert found.sketches.dtype == found.gradient_norms.dtype == found.losses.dtype == np.float32


def test_losses_equal_the_models_own_loss(teacher: Teacher, tokens: list[Tokens]) -> None:
    """Prevents a loss in other units, over other tokens, or of a neighbour."""
    expected = []
    for t in tokens:
        ids = torch.tensor([t.ids])
        labels = ids.clone()
        labels[0, : t.labelled_from] = -100
        expected.append(teacher.model(input_ids=ids, labels=labels).loss.item())
    np.testing.assert_allclose(teacher.sketch(tokens, SKETCH).losses, expected, rtol=1e-5)


def test_results_stand_in_the_order_of_the_examples(teacher: Teacher, tokens: list[Tokens]) -> None:
    """Prevents batches by length from mixing up whose sketch is whose."""
    order = np.random.default_rng(0).permutation(len(tokens))
    there = teacher.sketch(tokens, SKETCH)
    shuffled = teacher.sketch([tokens[i] for i in order], SKETCH)
    np.testing.assert_allclose(shuffled.sketches, there.sketches[order], atol=1e-5)
    np.testing.assert_allclose(shuffled.gradient_norms, there.gradient_norms[order], rtol=1e-5)
    np.testing.assert_allclose(shuffled.module_norms, there.module_norms[order], rtol=1e-5)
    np.testing.assert_allclose(shuffled.losses, there.losses[order], rtol=1e-5)


def test_the_same_work_twice_gives_the_same_bits(teacher: Teacher, tokens: list[Tokens]) -> None:
    """Prevents a retried task from writing other numbers than the one that died."""
    again = Teacher.load(
        teacher.spec, AdapterSpec(rank=2, targets=("q_proj", "down_proj")), seed=5, device=CPU
    )
    first, second = teacher.sketch(tokens, SKETCH), again.sketch(tokens, CountSketch(1024, seed=3))
    assert np.array_equal(first.sketches, second.sketches)
    assert np.array_equal(first.gradient_norms, second.gradient_norms)
    assert np.array_equal(first.losses, second.losses)


@given(st.permutations(range(4)))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_units_give_the_same_bits_in_any_order(teacher: Teacher, order: list[int]) -> None:
    """Prevents sketches that depend on which units a worker happened to do before."""
    tokens = teacher.tokens(EXAMPLES)
    units = [tokens[i::4] for i in range(4)]
    expected = [teacher.sketch(unit, SKETCH) for unit in units]
    for i in order:
        found = teacher.sketch(units[i], CountSketch(1024, seed=3))
        assert found.sketches.tobytes() == expected[i].sketches.tobytes()
        assert found.module_norms.tobytes() == expected[i].module_norms.tobytes()
        assert found.losses.tobytes() == expected[i].losses.tobytes()


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_positions_are_those_that_the_model_saw(
    causal_lm_folder: Path, layout: Literal["auto", "padded"]
) -> None:
    """Prevents a share of padding that is told and not true."""
    spec = ModelSpec(path=str(causal_lm_folder), max_tokens=64, tokens_per_batch=200, layout=layout)
    teacher = Teacher.load(spec, AdapterSpec(rank=2), seed=5, device=CPU)
    tokens = teacher.tokens(EXAMPLES)
    seen: list[int] = []
    teacher.model.get_input_embeddings().register_forward_hook(  # type: ignore[operator]
        lambda module, inputs, output: seen.append(inputs[0].numel())
    )
    positions = teacher.sketch(tokens, SKETCH).positions
    assert positions == sum(seen)
    real = sum(len(t.ids) for t in tokens)
    assert (positions == real) if layout == "auto" else (positions > real)


def test_no_examples_make_no_sketches(teacher: Teacher) -> None:
    """Prevents a unit whose rows were all set aside from failing."""
    found = teacher.sketch([], SKETCH)
    assert found.sketches.shape == (0, SKETCH.width)
    assert found.gradient_norms.shape == found.losses.shape == (0,)
    assert teacher.gradients([]).shape == (0, teacher.gradient_size)


def test_out_of_memory_halves_the_budget_and_loses_or_doubles_nothing(
    teacher: Teacher, tokens: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a long batch from killing the unit, and a repeated one from being added twice."""
    expected, exact = teacher.sketch(tokens, SKETCH), teacher.gradients(tokens)
    limit = 120
    assert max(len(t.ids) for t in tokens) <= limit < teacher.spec.tokens_per_batch
    sizes = limit_memory(teacher, monkeypatch, limit)
    done: list[int] = []
    assert_close(teacher.sketch(tokens, SKETCH, report=done.append), expected)
    assert sum(done) == len(tokens)
    assert len(done) < len(tokens), "every example went alone, so batches were not tried"
    assert sizes[0] > limit, "nothing was out of memory, so nothing was proved"
    tried = len(sizes)
    np.testing.assert_allclose(teacher.gradients(tokens), exact, atol=1e-5)
    assert max(sizes[tried:]) <= limit, "the smaller budget was forgotten"


def test_out_of_memory_in_the_middle_of_a_backward_pass_leaves_no_half_of_a_sketch(
    teacher: Teacher, tokens: list[Tokens]
) -> None:
    """Prevents modules that were sketched before the failure from being added again."""
    expected = teacher.sketch(tokens, SKETCH)
    calls = 0

    class Failing(CountSketch):
        def add(self, sketches: torch.Tensor, gradients: torch.Tensor, name: str) -> None:
            nonlocal calls
            calls += 1
            if calls in (3, 7):
                raise torch.OutOfMemoryError("fake")
            super().add(sketches, gradients, name)

    assert_close(teacher.sketch(tokens, Failing(1024, seed=3)), expected)
    assert calls > 7


def test_an_example_too_large_alone_is_named_and_the_others_go_on(
    teacher: Teacher, tokens: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents one long row from failing all, an endless loop, and hooks that pile up on the model."""
    expected = teacher.sketch(tokens, SKETCH)
    assert set(expected.faults) == {""}
    limit = sorted(len(t.ids) for t in tokens)[len(tokens) // 2]
    with monkeypatch.context() as patch:
        limit_memory(teacher, patch, limit)
        found = teacher.sketch(tokens, SKETCH)
        with pytest.raises(torch.OutOfMemoryError, match="alone"):
            teacher.gradients(tokens)
    for row, t in enumerate(tokens):
        assert bool(found.faults[row]) == (len(t.ids) > limit)
        if found.faults[row]:
            assert found.faults[row] == "does not fit the device's memory"
        else:
            np.testing.assert_allclose(found.sketches[row], expected.sketches[row], atol=1e-5)
    for module in teacher.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert_close(teacher.sketch(tokens, SKETCH), expected)


def test_the_models_weights_get_no_gradients(teacher: Teacher, tokens: list[Tokens]) -> None:
    """Prevents the third of the work, and the memory, that frozen weights do not need."""
    teacher.sketch(tokens, SKETCH)
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())


def test_logits_are_computed_at_labelled_positions_only(
    teacher: Teacher, tokens: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents the whole vocabulary's logits at every position, the largest tensor of all."""
    rows: list[int] = []
    teacher.model.get_output_embeddings().register_forward_hook(  # type: ignore[operator]
        lambda module, inputs, output: rows.append(output.numel() // output.shape[-1])
    )
    teacher.sketch(tokens, SKETCH)
    filled = sum(rows) - sum(t.labelled for t in tokens)
    assert 0 <= filled < HEAD_ROWS * len(rows)
    assert sum(rows) < sum(len(t.ids) for t in tokens)
