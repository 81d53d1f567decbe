"""The leading directions are those of a singular value decomposition, however the rows are cut."""

import numpy as np
import torch

from influcoder_ray.encoder.directions import coordinates, leading_directions
from influcoder_ray.encoder.workers import Workers

CPU = torch.device("cpu")


def sketches(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Rows of unequal length whose directions matter ever less."""
    generator = np.random.default_rng(seed)
    spread = generator.normal(size=(rows, width)) * 0.9 ** np.arange(width)
    return (spread * generator.uniform(0.5, 2, (rows, 1))).astype(np.float32)


def directions_of(sides: list[np.ndarray], dimensions: int) -> torch.Tensor:
    return leading_directions(sides, dimensions, workers=Workers(), seed=3, device=CPU)


def test_directions_hold_as_much_of_the_sketches_as_the_best_ones_do() -> None:
    """Prevents a student that is taught directions in which gradients have little in common."""
    sides = [sketches(40, 300), sketches(90, 300, seed=1)]
    found = directions_of(sides, 8)
    torch.testing.assert_close(found.T @ found, torch.eye(8), rtol=0, atol=1e-5)
    unit = np.concatenate([side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides])
    best = np.linalg.svd(unit.astype(np.float64), compute_uv=False)[:8]
    held = np.linalg.norm(unit @ found.numpy(), axis=0)
    np.testing.assert_allclose(held, best, rtol=1e-3)
    assert np.all(np.diff(held) <= 1e-6)


def test_coordinates_keep_the_cosines_of_sketches_that_lie_in_the_directions() -> None:
    """Prevents norms from coming into what is a matter of direction alone."""
    low = sketches(30, 6) @ np.linalg.qr(np.random.default_rng(2).normal(size=(200, 6)))[0].T
    found = coordinates(low, directions_of([low, low[:3]], 6)).numpy()
    unit = low / np.linalg.norm(low, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, unit @ unit.T, atol=1e-4)


def test_narrow_sketches_have_no_more_directions_than_numbers() -> None:
    """Prevents a crash where the sketch is narrower than the directions asked for."""
    assert directions_of([sketches(9, 4), sketches(5, 4)], 128).shape == (4, 4)
    assert coordinates(np.zeros((0, 4), np.float32), torch.eye(4)).shape == (0, 4)


def test_a_memory_map_is_read_as_an_array_is(tmp_path: object) -> None:
    """Prevents sketches from having to fit in memory."""
    array = sketches(50, 64)
    mapped = np.memmap(f"{tmp_path}/rows", dtype=np.float32, mode="w+", shape=array.shape)
    mapped[:] = array
    torch.testing.assert_close(directions_of([mapped, array], 5), directions_of([array, array], 5))
