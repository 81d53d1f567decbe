"""The leading directions of the teacher's sketches: what gradients of different texts have in common.

Most of a gradient is its text's own. What can be predicted from other texts' gradients lies in the few
directions that they share; in these the student is trained.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from influcoder_ray.encoder.workers import Workers

# Directions more than wanted, and rounds: subspace iteration then has the leading ones to several digits.
_SPARE, _ROUNDS = 16, 6
_ROWS_AT_ONCE = 1024


def leading_directions(
    sketches: Sequence[np.ndarray], dimensions: int, *, workers: Workers, seed: int, device: torch.device
) -> Tensor:
    """Orthonormal directions (D, d) that hold the most of all workers' sketches, the foremost first.

    Sketches are read a block of rows at a time, so they may be memory-mapped; beside a block, memory
    holds matrices of D x (d + 16).

    Args:
        sketches: this worker's rows of either side, (n, D) each; taken at unit length.
        dimensions: d; fewer come back where sketches are narrower.

    Source: subspace iteration with a Rayleigh-Ritz step; Halko, Martinsson and Tropp (2011), algorithm 4.4.
    """
    width = sketches[0].shape[1]
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(width, min(dimensions + _SPARE, width), generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(start.to(device)).Q
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(_times_gram(sketches, basis, workers)).Q
    values, vectors = torch.linalg.eigh(basis.T @ _times_gram(sketches, basis, workers))
    leading = torch.argsort(values, descending=True)[:dimensions]
    return (basis @ vectors[:, leading]).float()


def coordinates(sketches: np.ndarray, directions: Tensor) -> Tensor:
    """The coordinates (n, d) float32 of unit sketches (n, D) along directions (D, d)."""
    parts = [rows @ directions for rows in _unit_blocks(sketches, directions.device)]
    return torch.cat(parts) if parts else directions.new_zeros(0, directions.shape[1])


def _times_gram(sketches: Sequence[np.ndarray], basis: Tensor, workers: Workers) -> Tensor:
    """The sum over all workers' unit sketches t of t (t . basis), (D, k) float64."""
    found = torch.zeros_like(basis)
    narrow = basis.float()
    for side in sketches:
        for rows in _unit_blocks(side, basis.device):
            found += (rows.T @ (rows @ narrow)).double()
    workers.sum(found)
    return found


def _unit_blocks(sketches: np.ndarray, device: torch.device) -> Iterator[Tensor]:
    for start in range(0, len(sketches), _ROWS_AT_ONCE):
        rows = torch.from_numpy(sketches[start : start + _ROWS_AT_ONCE].astype(np.float32)).to(device)
        yield torch.nn.functional.normalize(rows, dim=1)
