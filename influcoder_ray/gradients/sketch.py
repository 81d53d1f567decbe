"""CountSketch: a gradient of millions of numbers as a vector of D that keeps dot products.

Charikar, Chen and Farach-Colton, "Finding frequent items in data streams" (2002): parameter j goes
to bucket h(j) with sign s(j), sketch[b] = sum over j with h(j) = b of s(j) * gradient[j]. Over random
h and s, the dot product of two sketches is an unbiased estimate of that of the gradients.
"""

import torch
from torch import Tensor

from influcoder_ray.gradients.hashing import hash_positions, key_of


class CountSketch:
    """The sketch of one seed and width.

    Args:
        width: D, a power of two.
        seed: with the names of modules it decides every bucket and sign.
    """

    def __init__(self, width: int, seed: int) -> None:
        self.width = width
        self.seed = seed

    def add(self, sketches: Tensor, gradients: Tensor, name: str) -> None:
        """Add a module's gradients to sketches, in place.

        Args:
            sketches: (N, D) float32.
            gradients: (N, rows, columns), any float type; row and column are a parameter's place.
            name: the parameter's full name; the same name always meets the same buckets and signs.
        """
        flat = gradients.flatten(1)
        buckets, signs = self._buckets_and_signs(flat.shape[1], name, flat.device)
        signed = flat.float() * signs
        for row, target in zip(signed, sketches, strict=True):
            # One example at a time: on a CPU five times as fast as along the second axis, and the
            # order of additions is the order of parameters, whatever the batch.
            target.index_add_(0, buckets, row)

    def _buckets_and_signs(self, count: int, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        bits = hash_positions(0, count, key_of(self.seed, "countsketch", name), device)
        # Low bits choose the bucket and the highest one the sign: independent bits of one hash.
        return bits & (self.width - 1), (1 - 2 * (bits >> 31)).float()
