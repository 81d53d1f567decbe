"""Dot products out of stored sketches, against those of the gradients themselves."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from influcoder_ray.attribution.dot import dot_influence
from influcoder_ray.gradients.sketch import CountSketch

F32 = npt.NDArray[np.float32]


def gradients(rows: int, seed: int) -> torch.Tensor:
    """(N, 8, 25): of unequal lengths, and alike enough that dot products are far from zero."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(1, 8, 25, generator=torch.Generator().manual_seed(0))
    scale = torch.rand(rows, 1, 1, generator=generator) * 5 + 0.1
    return scale * (torch.randn(rows, 8, 25, generator=generator) + shared)


def stored(parts: torch.Tensor, *, width: int, seed: int, dtype: str = "float32") -> tuple[F32, F32]:
    """Unit sketches and their lengths, as the sketch stage writes them."""
    raw = torch.zeros(len(parts), width)
    CountSketch(width, seed).add(raw, parts, "module.lora_B")
    norms = raw.norm(dim=1, keepdim=True)
    return (raw / norms).numpy().astype(dtype), norms[:, 0].numpy()


def exact(queries: torch.Tensor, pool: torch.Tensor) -> npt.NDArray[np.float64]:
    return (queries.flatten(1).double() @ pool.flatten(1).double().T).numpy()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_wide_sketch_gives_the_gradients_dot_products_within_its_error(dtype: str) -> None:
    """Prevents lengths that are multiplied twice, not at all, or with the wrong side."""
    queries, pool = gradients(4, 1), gradients(6, 2)
    width = 1 << 14
    found = dot_influence(
        *stored(queries, width=width, seed=3, dtype=dtype), *stored(pool, width=width, seed=3, dtype=dtype)
    )
    assert found.shape == (4, 6)
    assert found.dtype == np.float32
    lengths = np.outer(queries.flatten(1).norm(dim=1), pool.flatten(1).norm(dim=1))
    deviation = np.sqrt(2 / width) * lengths
    assert (np.abs(found - exact(queries, pool)) < 5 * deviation).all()
    assert (np.abs(found) > 0.1 * lengths).any(), "nothing but noise would prove nothing"


def test_over_seeds_the_estimate_is_unbiased() -> None:
    """Prevents an estimate that is too small for everyone, as with the unsketched gradient's length."""
    queries, pool = gradients(1, 4), gradients(1, 5)
    draws = np.array(
        [
            dot_influence(*stored(queries, width=16, seed=seed), *stored(pool, width=16, seed=seed))[0, 0]
            for seed in range(1_500)
        ]
    )
    error = draws.mean() - exact(queries, pool)[0, 0]
    assert abs(error) < 3 * draws.std(ddof=1) / len(draws) ** 0.5
    bound = np.sqrt(2 / 16) * float(queries.norm() * pool.norm())
    assert 0.5 * bound < draws.std() < 1.05 * bound


def test_norms_of_another_number_are_refused() -> None:
    """Prevents numpy from stretching one length over all sketches."""
    sketches, norms = stored(gradients(3, 1), width=64, seed=0)
    with pytest.raises(ValueError, match=r"pool norms have shape \(1,\) for 3 sketches"):
        dot_influence(sketches, norms, sketches, norms[:1])
