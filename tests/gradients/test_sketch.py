"""CountSketch: its formula, its expectation, and that nothing but (seed, name, place) decides it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influcoder_ray.gradients.hashing import hash_positions, key_of
from influcoder_ray.gradients.sketch import CountSketch

CPU = torch.device("cpu")
SHAPES = {"a.lora_B": (7, 5), "b.lora_A": (3, 11), "b.lora_B": (13, 3)}


def gradients(examples: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(examples, *shape, generator=generator) for name, shape in SHAPES.items()}


def sketched(parts: dict[str, torch.Tensor], width: int = 64, seed: int = 1) -> torch.Tensor:
    sketch = CountSketch(width, seed)
    out = torch.zeros(len(next(iter(parts.values()))), width)
    for name, part in parts.items():
        sketch.add(out, part, name)
    return out


def dense_matrix(name: str, size: int, width: int, seed: int) -> np.ndarray:
    """The sketch of one module as a matrix (D, size): a single sign in each column."""
    bits = hash_positions(0, size, key_of(seed, "countsketch", name), CPU).numpy()
    matrix = np.zeros((width, size))
    matrix[bits % width, np.arange(size)] = np.where(bits < 2**31, 1, -1)
    return matrix


def test_a_sketch_equals_its_dense_formula() -> None:
    """Prevents a parameter from falling into two buckets, into none, or with the wrong sign."""
    parts = gradients(4)
    expected = sum(
        part.flatten(1).double().numpy() @ dense_matrix(name, part[0].numel(), 64, 1).T
        for name, part in parts.items()
    )
    np.testing.assert_allclose(sketched(parts), expected, atol=1e-5)


def test_dot_products_of_sketches_are_unbiased_over_seeds() -> None:
    """Prevents signs or buckets that lean one way and shift every influence."""
    parts = gradients(2, seed=4)
    flat = torch.cat([p.flatten(1) for p in parts.values()], 1).double()
    exact = float(flat[0] @ flat[1])
    products = []
    for seed in range(2_000):
        a, b = sketched(parts, width=32, seed=seed).double()
        products.append(float(a @ b))
    error = np.mean(products) - exact
    assert abs(error) < 3 * np.std(products, ddof=1) / len(products) ** 0.5
    # The variance of Charikar et al.: (|x|^2 |y|^2 + (x.y)^2 - 2 sum x_i^2 y_i^2) / D.
    x2, y2 = flat.square()
    variance = float(x2.sum() * y2.sum() + exact**2 - 2 * (x2 * y2).sum()) / 32
    assert np.var(products) == pytest.approx(variance, rel=0.15)


@given(st.permutations(list(SHAPES)), st.permutations(range(5)))
@settings(max_examples=30, deadline=None)
def test_a_sketch_depends_neither_on_the_order_of_modules_nor_on_the_batch(
    names: list[str], rows: list[int]
) -> None:
    """Prevents numbers that change with the order of the backward pass or with the neighbours."""
    parts = gradients(5)
    together = sketched(parts)
    elsewhere = sketched({name: parts[name][rows[:3]] for name in names})
    torch.testing.assert_close(elsewhere, together[rows[:3]], rtol=0, atol=1e-5)
    same_order = sketched({name: part[rows[:3]] for name, part in parts.items()})
    assert torch.equal(same_order, together[rows[:3]])


@given(st.floats(-10, 10), st.floats(-10, 10))
@settings(max_examples=30, deadline=None)
def test_a_sketch_is_linear(a: float, b: float) -> None:
    """Prevents a sum of gradients (group influence) from differing from the sum of their sketches."""
    x, y = gradients(2, seed=1), gradients(2, seed=2)
    mixed = sketched({name: a * x[name] + b * y[name] for name in x})
    torch.testing.assert_close(mixed, a * sketched(x) + b * sketched(y), rtol=0, atol=1e-3)


@pytest.mark.parametrize("width", [1_024, 16_384])
def test_buckets_and_signs_are_balanced_and_independent(width: int) -> None:
    """Prevents crowded buckets, which drown small gradients, and a sign that goes with the bucket."""
    count = 64 * width
    basis = torch.ones(1, count, 1)
    crowding, signed = torch.zeros(1, width), torch.zeros(1, width)
    sketch = CountSketch(width, seed=9)
    buckets, signs = sketch._buckets_and_signs(count, "module", CPU)
    crowding[0] = torch.bincount(buckets, minlength=width)
    sketch.add(signed, basis, "module")
    # Chi-square with D degrees of freedom has mean D and variance 2 D; five deviations.
    slack = 5 * (2 * width) ** 0.5
    assert abs(float(((crowding - 64) ** 2 / 64).sum()) - width) < slack
    assert abs(float((signed**2 / 64).sum()) - width) < slack
    assert abs(float(signs.sum())) < 5 * count**0.5


def test_another_seed_or_another_name_is_another_sketch() -> None:
    """Prevents modules that share buckets, whose gradients would add up as if they were one."""
    part = gradients(1)["a.lora_B"]
    base = sketched({"a.lora_B": part})
    for other in (sketched({"a.lora_B": part}, seed=2), sketched({"a.lora_A": part})):
        cosine = torch.cosine_similarity(base, other).abs().item()
        assert cosine < 0.6
    keys = torch.stack(
        [CountSketch(1024, 0)._buckets_and_signs(50_000, f"layer.{i}", CPU)[0] for i in range(4)]
    )
    for i in range(4):
        for j in range(i):
            # Equal buckets by chance alone: a binomial count with p = 1 / D.
            same = int((keys[i] == keys[j]).sum())
            assert abs(same - 50_000 / 1024) < 5 * (50_000 / 1024) ** 0.5


def test_adding_is_done_in_place_and_adds_to_what_is_there() -> None:
    """Prevents a module from overwriting the one before it."""
    part = gradients(2)["a.lora_B"]
    out = torch.ones(2, 64)
    CountSketch(64, 1).add(out, part, "a.lora_B")
    torch.testing.assert_close(out, 1 + sketched({"a.lora_B": part}))


def test_bfloat16_gradients_are_added_in_float32() -> None:
    """Prevents the accumulation error of bfloat16 in a bucket with many parameters."""
    part = gradients(2)["a.lora_B"].bfloat16()
    assert torch.equal(sketched({"a.lora_B": part}), sketched({"a.lora_B": part.float()}))
