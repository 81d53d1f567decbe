"""What each token contributes to an influence is autograd's own, and adds up to it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exact_gradients import CPU, some_tokens, teacher_of, trained_adapter
from tiny import causal_config, causal_lm
from torch import Tensor

from influcoder_ray.attribution.preconditioning import MixedHessian
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.adapter import AdapterWeights, adapter_weights, find_targets
from influcoder_ray.gradients.contributions import (
    TokenInfluence,
    position_products,
    sketched_token_influence,
    token_influence,
)
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.specs import AdapterSpec

TOLERANCE = 1e-5
QUERY, *CANDIDATES = some_tokens([(11, 4), (5, 2), (12, 7), (2, 1), (20, 1)])


def model_with(family: str, kind: str, folder: Path) -> tuple[torch.nn.Module, list[AdapterWeights]]:
    model = causal_lm(causal_config(family))
    spec = AdapterSpec(rank=3)
    if kind == "trained":
        spec = trained_adapter(model, folder, r=3, lora_alpha=12, target_modules="all-linear")
    weights = adapter_weights(find_targets(model.config, spec), spec, seed=1, device=CPU, dtype=torch.float32)
    return model, weights


def slopes_by_position(
    model: torch.nn.Module,
    weights: Sequence[AdapterWeights],
    tokens: Tokens,
    steps: Mapping[str, tuple[Tensor, Tensor | None]],
) -> np.ndarray:
    """dL/de (T,) at e = 0, by autograd: at position t the adapter is B + e_t step_B and A + e_t step_A."""
    e = torch.zeros(len(tokens.ids), requires_grad=True)
    with ExitStack() as stack:
        for w in weights:
            b = torch.zeros(w.target.out_features, w.target.rank) if w.b is None else w.b
            step_b, step_a = steps[w.target.name]

            def hook(
                _: torch.nn.Module,
                inputs: tuple[Tensor, ...],
                output: Tensor,
                *,
                a: Tensor = w.a,
                b: Tensor = b,
                step_b: Tensor = step_b,
                step_a: Tensor | None = step_a,
                scaling: float = w.target.scaling,
            ) -> Tensor:
                x = inputs[0].reshape(len(tokens.ids), -1)
                low = x @ a.T + (0 if step_a is None else e[:, None] * (x @ step_a.T))
                added = low @ b.T + e[:, None] * (low @ step_b.T)
                return output + scaling * added.view_as(output)

            handle = model.get_submodule(w.target.name).register_forward_hook(hook)
            stack.callback(handle.remove)
        ids = torch.tensor([tokens.ids])
        labels = ids.clone()
        labels[0, : tokens.labelled_from] = -100
        (slopes,) = torch.autograd.grad(model(input_ids=ids, labels=labels).loss, e)
    return slopes.double().numpy()


def as_steps(
    weights: Sequence[AdapterWeights], direction: np.ndarray
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """A whole gradient (G,) as a step in each module's B (O, R) and A (R, I)."""
    steps, start = {}, 0
    for w in weights:
        size = w.target.out_features * w.target.rank
        b = torch.from_numpy(direction[start : start + size]).view(w.target.out_features, -1)
        start += size
        a = None
        if w.b is not None:
            a = torch.from_numpy(direction[start : start + w.a.numel()]).view_as(w.a)
            start += w.a.numel()
        steps[w.target.name] = b, a
    return steps


def unit(row: np.ndarray) -> np.ndarray:
    return (row / np.linalg.norm(row.astype(np.float64))).astype(np.float32)


@pytest.mark.parametrize("layout", ["auto", "padded"])
@pytest.mark.parametrize("kind", ["fresh", "trained"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma2", "gemma3", "gpt_neox", "gpt2", "opt"])
def test_each_tokens_contribution_is_autograds_slope_at_its_position(
    family: str, kind: str, layout: str, tmp_path: Path
) -> None:
    """Prevents a contribution booked on a neighbour's token, or on another example of the batch."""
    model, weights = model_with(family, kind, tmp_path)
    teacher = teacher_of(model, weights, tokens_per_batch=30, layout=layout)
    found = token_influence(teacher, QUERY, CANDIDATES)
    query, *candidates = teacher.gradients([QUERY, *CANDIDATES])
    for tokens, gradient, influence in zip(CANDIDATES, candidates, found, strict=True):
        cosine = float(unit(query).astype(np.float64) @ unit(gradient))
        assert influence.influence == pytest.approx(cosine, abs=TOLERANCE)
        for side, mine, other, parts in (
            (tokens, gradient, query, influence.of_candidate),
            (QUERY, query, gradient, influence.of_query),
        ):
            slopes = slopes_by_position(model, weights, side, as_steps(weights, unit(other)))
            expected = slopes / np.linalg.norm(mine)
            assert np.abs(expected).max() > 1e-4, "the reference is zero, so nothing was proved"
            assert parts.shape == expected.shape
            np.testing.assert_allclose(parts, expected, rtol=0, atol=TOLERANCE)
            assert parts.sum() == pytest.approx(cosine, abs=TOLERANCE)


def test_the_last_token_and_those_of_other_examples_have_no_part(tmp_path: Path) -> None:
    """Prevents a highlight on a token from which nothing is predicted."""
    model, weights = model_with("llama", "fresh", tmp_path)
    for influence in token_influence(teacher_of(model, weights), QUERY, CANDIDATES):
        assert influence.of_candidate[-1] == influence.of_query[-1] == 0
        assert np.abs(influence.of_candidate[:-1]).max() > 0


def test_holding_fewer_gradients_at_once_changes_nothing(tmp_path: Path) -> None:
    """Prevents candidates of a second part from being compared with gradients of the first."""
    model, weights = model_with("llama", "trained", tmp_path)
    teacher = teacher_of(model, weights)
    whole = token_influence(teacher, QUERY, CANDIDATES)
    parts = token_influence(teacher, QUERY, CANDIDATES, held_bytes=8 * teacher.gradient_size)
    for one, other in zip(whole, parts, strict=True):
        assert one.influence == pytest.approx(other.influence, abs=1e-6)
        np.testing.assert_allclose(one.of_candidate, other.of_candidate, rtol=0, atol=1e-6)
        np.testing.assert_allclose(one.of_query, other.of_query, rtol=0, atol=1e-6)


def checked_sums(found: Sequence[TokenInfluence], expected: np.ndarray) -> None:
    for influence, cosine in zip(found, expected, strict=True):
        for total in (influence.influence, influence.of_candidate.sum(), influence.of_query.sum()):
            assert total == pytest.approx(cosine, abs=TOLERANCE)


@pytest.mark.parametrize("kind", ["fresh", "trained"])
def test_contributions_of_sketches_add_up_to_the_preconditioned_influence(kind: str, tmp_path: Path) -> None:
    """Prevents highlights of another influence than the one that the run's settings define."""
    model, weights = model_with("llama", kind, tmp_path)
    teacher, sketch = teacher_of(model, weights), CountSketch(1024, 3)
    rows = teacher.sketch([QUERY, *CANDIDATES, *some_tokens([(7, 3), (9, 4), (6, 1)])], sketch).sketches
    hessian = MixedHessian.fit(rows[:4], rows[4:], mixing=0.5, damping=0.01)
    features = hessian.apply(rows[:5]).astype(np.float64)
    found = sketched_token_influence(teacher, sketch, QUERY, CANDIDATES, hessian.transform)
    checked_sums(found, features[1:] @ features[0])
    plain = sketched_token_influence(teacher, sketch, QUERY, CANDIDATES, lambda sketches: sketches)
    lengths = np.linalg.norm(rows[:5].astype(np.float64), axis=1)
    checked_sums(plain, rows[1:5].astype(np.float64) @ rows[0] / lengths[1:] / lengths[0])
    changes = [abs(one.influence - other.influence) for one, other in zip(plain, found, strict=True)]
    assert max(changes) > 1e-2, "the preconditioner did nothing, so nothing was proved"


@given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_the_sketch_pulled_back_gives_the_same_dot_products(rows: int, columns: int, seed: int) -> None:
    """Prevents a bucket or sign in the transposed sketch that is not the sketch's own."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(2, rows, columns, generator=generator)
    vectors = torch.randn(3, 1024, generator=generator)
    sketch, sketches = CountSketch(1024, seed), torch.zeros(2, 1024)
    sketch.add(sketches, gradients, "w")
    back = sketch.pull_back(vectors, (rows, columns), "w")
    assert back.shape == (3, rows, columns)
    expected = vectors.double() @ sketches.double().T
    found = back.flatten(1).double() @ gradients.flatten(1).double().T
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_an_example_without_gradient_is_refused(tmp_path: Path) -> None:
    """Prevents a division by a length of zero that would show as a page of empty marks."""
    model, weights = model_with("llama", "fresh", tmp_path)
    silent = [AdapterWeights(w.target, torch.zeros_like(w.a), None) for w in weights]
    with pytest.raises(ValueError, match="zero or not finite"):
        token_influence(teacher_of(model, silent), QUERY, CANDIDATES)


def test_products_are_with_each_of_several_directions(tmp_path: Path) -> None:
    """Prevents the columns of several directions from being mixed."""
    model, weights = model_with("gpt2", "trained", tmp_path)
    teacher = teacher_of(model, weights)
    generator = torch.Generator().manual_seed(0)
    drawn: dict[str, Tensor] = {}

    def directions(name: str, shape: tuple[int, int]) -> Tensor:
        return drawn.setdefault(name, torch.randn(3, *shape, generator=generator))

    together = position_products(teacher, CANDIDATES, directions, 3)
    for number in range(3):
        alone = position_products(
            teacher, CANDIDATES, lambda name, shape, n=number: drawn[name][n : n + 1], 1
        )
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[:, 0], many[:, number], rtol=1e-4, atol=1e-5)
