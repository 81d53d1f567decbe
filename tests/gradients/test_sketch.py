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


def sketched(parts: dict[str, torch.Tensor], width: int = 16, seed: int = 1) -> torch.Tensor:
    sketch = CountSketch(width, seed)
    out = torch.zeros(len(next(iter(parts.values()))), width)
    for name, part in parts.items():
        sketch.add(out, part, name)
    return out


def placed(name: str, size: int, width: int, seed: int) -> tuple[list[int], list[int]]:
    """Bucket and sign of each of a parameter's entries, one after the other, in plain integers."""

    def hashed(position: int, purpose: str) -> int:
        return int(hash_positions(position, 1, key_of(seed, purpose, name), CPU)[0])

    buckets, signs = [], []
    for entry in range(size):
        block, place = divmod(entry, width)
        multiplier, shift = hashed(2 * block, "buckets") // 2 * 2 + 1, hashed(2 * block + 1, "buckets")
        buckets.append((multiplier * place + shift) % width)
        signs.append(-1 if hashed(entry // 32, "signs") >> entry % 32 & 1 else 1)
    return buckets, signs


def variance_of(x: torch.Tensor, y: torch.Tensor, width: int) -> tuple[float, float]:
    """Of the dot product of two sketches: by our formula, and by the one for independent buckets."""
    blocks = torch.cat(
        [
            torch.arange(rows * columns) // width + 1000 * module
            for module, (rows, columns) in enumerate(SHAPES.values())
        ]
    )
    terms = x.square()[:, None] * y.square()[None] + (x * y)[:, None] * (x * y)[None]
    terms.fill_diagonal_(0)
    apart = blocks[:, None] != blocks[None]
    return float(terms[apart].sum()) / width, float(terms.sum()) / width


@pytest.mark.parametrize("width", [8, 32, 64])
def test_a_sketch_equals_its_formula(width: int) -> None:
    """Prevents a parameter from falling into two buckets, into none, or with the wrong sign."""
    parts = gradients(4)
    expected = np.zeros((4, width))
    for name, part in parts.items():
        flat = part.flatten(1).double().numpy()
        for entry, (bucket, sign) in enumerate(zip(*placed(name, flat.shape[1], width, 1), strict=True)):
            expected[:, bucket] += sign * flat[:, entry]
    np.testing.assert_allclose(sketched(parts, width=width), expected, atol=1e-5)


@pytest.mark.parametrize("width", [16, 32])
def test_dot_products_of_sketches_are_unbiased_and_vary_no_more_than_with_independent_buckets(
    width: int,
) -> None:
    """Prevents signs or buckets that lean one way and shift every influence, and needless noise."""
    parts = gradients(2, seed=4)
    x, y = torch.cat([p.flatten(1) for p in parts.values()], 1).double()
    products = []
    for seed in range(2_000):
        a, b = sketched(parts, width=width, seed=seed).double()
        products.append(float(a @ b))
    error = np.mean(products) - float(x @ y)
    assert abs(error) < 3 * np.std(products, ddof=1) / len(products) ** 0.5
    ours, independent = variance_of(x, y, width)
    assert np.var(products) == pytest.approx(ours, rel=0.15)
    assert ours < independent
    # Weinberger et al., lemma 2, for vectors that are not of unit length.
    assert independent < float((x @ x) * (y @ y) + (x @ y) ** 2) / width


@pytest.mark.parametrize("shape", [(4096, 1), (1, 4096), (64, 64), (1024, 4)])
def test_the_variance_does_not_depend_on_a_modules_shape(shape: tuple[int, int]) -> None:
    """Prevents hashing by row and column, which lets whole rows meet and drowns tall or flat modules."""
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(2, 4096, generator=generator)
    # A heavy row and a heavy column, as outlier channels make them.
    for vector in (x, y):
        vector.view(shape)[0] *= 5
        vector.view(shape)[:, -1] *= 5
    pair = torch.stack([x / x.norm(), y / y.norm()])
    cosine = float(pair[0] @ pair[1])
    errors = []
    for seed in range(600):
        out = torch.zeros(2, 64)
        CountSketch(64, seed).add(out, pair.view(2, *shape), "module")
        errors.append(float(out[0] @ out[1]) - cosine)
    fourth = float((pair[0].square() * pair[1].square()).sum())
    predicted = (1 + cosine**2 - 2 * fourth) / 64
    assert np.var(errors) == pytest.approx(predicted, rel=0.25)


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
def test_within_a_block_no_two_parameters_share_a_bucket(width: int) -> None:
    """Prevents additions whose order shows in the result, on devices where it is not fixed."""
    blocks = CountSketch(width, seed=9).buckets(3 * width + 5, "module", CPU)
    assert [len(block) for block in blocks] == [width, width, width, 5]
    for block in blocks:
        assert len(block.unique()) == len(block)
        assert block.min() >= 0
        assert block.max() < width


def test_parameters_of_different_blocks_meet_as_often_as_chance_has_it() -> None:
    """Prevents blocks or modules that share their buckets and add up as if they were one."""
    width, blocks = 1_024, 48
    sketch = CountSketch(width, seed=0)
    for others in (
        sketch.buckets(blocks * width, "layer.0", CPU),
        [sketch.buckets(width, f"layer.{i}", CPU)[0] for i in range(blocks)],
        [CountSketch(width, seed).buckets(width, "layer.0", CPU)[0] for seed in range(blocks)],
    ):
        table = torch.stack(others)
        same = [int((table[i] == table[j]).sum()) for i in range(blocks) for j in range(i)]
        # One of 1,024 parameters a pair of blocks, on average; affine maps meet in bursts of powers of two.
        assert np.mean(same) == pytest.approx(1, abs=5 * np.std(same) / len(same) ** 0.5)
        assert np.std(same) < 6


def test_signs_are_balanced_and_do_not_repeat() -> None:
    """Prevents signs that lean one way, or that go with the bucket, the block or the module."""
    count, width = 64 * 1_024, 1_024
    sketch = CountSketch(width, seed=9)
    signs = sketch.signs(count, "module", CPU)
    assert signs.abs().eq(1).all()
    assert abs(float(signs.sum())) < 5 * count**0.5
    for other in (
        signs.roll(1),
        signs.roll(32),
        signs.roll(width),
        sketch.signs(count, "another", CPU),
        CountSketch(width, seed=8).signs(count, "module", CPU),
    ):
        assert abs(float(signs @ other)) < 5 * count**0.5
    buckets = torch.cat(sketch.buckets(count, "module", CPU))
    crowding = torch.zeros(width).index_add(0, buckets, signs)
    # Chi-square with D degrees of freedom has mean D and variance 2 D; five deviations.
    assert abs(float((crowding**2 / 64).sum()) - width) < 5 * (2 * width) ** 0.5


def test_another_seed_or_another_name_is_another_sketch() -> None:
    """Prevents modules whose gradients would add up as if they were one."""
    part = torch.randn(1, 40, 8, generator=torch.Generator().manual_seed(0))
    base = sketched({"a.lora_B": part}, width=64)
    for other in (
        sketched({"a.lora_B": part}, width=64, seed=2),
        sketched({"a.lora_A": part}, width=64),
    ):
        assert torch.cosine_similarity(base, other).abs().item() < 0.6


def test_adding_is_done_in_place_and_adds_to_what_is_there() -> None:
    """Prevents a module from overwriting the one before it."""
    part = gradients(2)["a.lora_B"]
    out = torch.ones(2, 16)
    CountSketch(16, 1).add(out, part, "a.lora_B")
    torch.testing.assert_close(out, 1 + sketched({"a.lora_B": part}))


def test_bfloat16_gradients_are_added_in_float32() -> None:
    """Prevents the accumulation error of bfloat16 in a bucket with many parameters."""
    part = gradients(2)["a.lora_B"].bfloat16()
    assert torch.equal(sketched({"a.lora_B": part}), sketched({"a.lora_B": part.float()}))
