"""On a GPU: fused kernels give what plain operations give, and each gradient is still its example's own."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import causal_config, causal_lm

from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.adapter import adapter_weights, find_targets
from influcoder_ray.gradients.fused import kernels_on
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Teacher

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or kernels_on(torch.device("cuda")) is None,
    reason="no GPU here that Triton compiles for",
)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
LENGTHS = (5, 12, 2, 9, 20, 3, 20, 13, 200, 65, 64, 1 + 128)


class NoTokenizer:
    """Stands where examples come as tokens already."""

    chat_template = None


def teacher_on(device: torch.device, dtype: str = "float32", layout: str = "auto", rank: int = 4) -> Teacher:
    model = causal_lm(causal_config("llama", max_position_embeddings=512))
    spec = AdapterSpec(rank=rank)
    kind = getattr(torch, dtype)
    weights = adapter_weights(find_targets(model.config, spec), spec, seed=1, device=device, dtype=kind)
    model = model.to(device=device, dtype=kind)
    return Teacher(
        model, NoTokenizer(), weights, ModelSpec(path="-", tokens_per_batch=256, layout=layout, dtype=dtype)
    )


def some_tokens(lengths: Sequence[int] = LENGTHS) -> list[Tokens]:
    generator = torch.Generator().manual_seed(1)
    return [
        Tokens(tuple(torch.randint(3, 470, (n,), generator=generator).tolist()), 1, False) for n in lengths
    ]


@pytest.mark.parametrize("layout", ["auto", "padded"])
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_gradients_on_a_gpu_are_those_of_a_cpu(dtype: str, most: float, layout: str) -> None:
    """Prevents another layout, or kernels of our own, from giving one example another's tokens."""
    tokens = some_tokens()
    expected = teacher_on(CPU).gradients(tokens)
    found = teacher_on(GPU, dtype, layout).gradients(tokens)
    errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors.max() <= most


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    rank=st.sampled_from([1, 4, 8, 16, 33, 80]),
    columns=st.sampled_from([1, 24, 100, 576]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    turned=st.booleans(),
)
def test_sums_of_outer_products_are_exact_to_the_last_bits_of_float32(
    lengths: list[int], rank: int, columns: int, dtype: torch.dtype, turned: bool
) -> None:
    """Prevents a tile from losing tokens at its edge, taking a neighbour's, or adding up in 16 bits."""
    kernels = kernels_on(GPU)
    assert kernels is not None
    size = sum(lengths)
    narrow = torch.randn(size, rank, device=GPU).to(dtype)
    wide = torch.randn(columns, size, device=GPU).to(dtype).T
    wide = wide if turned else wide.contiguous()
    ends = np.cumsum([0, *lengths])
    starts = torch.tensor(ends, dtype=torch.int32, device=GPU)
    found = kernels.outer_sums(narrow, wide, starts, 0.5)
    for row, (first, last) in enumerate(pairwise(ends)):
        expected = narrow[first:last].double().T @ wide[first:last].double() * 0.5
        size_of_terms = narrow[first:last].double().abs().T @ wide[first:last].double().abs()
        assert ((found[row] - expected).abs() <= 1e-5 * size_of_terms + 1e-9).all()


@pytest.mark.parametrize("width", [1_024, 16_384, 65_536])
@pytest.mark.parametrize("shape", [(1, 3), (8, 576), (8, 9_728), (16, 2_560)])
def test_a_sketch_has_the_same_bits_on_a_gpu_and_a_cpu(width: int, shape: tuple[int, int]) -> None:
    """Prevents shards made on different machines from living in different sketch spaces."""
    generator = torch.Generator().manual_seed(0)
    gradients, begun = torch.randn(3, *shape, generator=generator), torch.randn(3, width, generator=generator)
    sketches = [begun.to(device, copy=True) for device in (CPU, GPU)]
    sketch = CountSketch(width, seed=5)
    for out in sketches:
        sketch.add(out, gradients.to(out.device), "layer.lora_B")
        sketch.add(out, gradients.to(out.device), "layer.lora_A")
    assert torch.equal(sketches[0], sketches[1].cpu())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_second_run_on_a_gpu_gives_the_same_bits(dtype: str) -> None:
    """Prevents sketches that change with the order in which a GPU's threads happen to finish."""
    tokens = some_tokens(LENGTHS * 4)
    teacher = teacher_on(GPU, dtype)
    first, second = (teacher.sketch(tokens, CountSketch(1_024, 3)) for _ in range(2))
    assert np.array_equal(first.sketches, second.sketches)
    assert np.array_equal(first.gradient_norms, second.gradient_norms)
