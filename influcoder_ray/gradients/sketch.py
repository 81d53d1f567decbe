"""CountSketch: a gradient of millions of numbers as a vector of D that keeps dot products.

Charikar, Chen and Farach-Colton, "Finding frequent items in data streams" (2002): parameter j goes
to bucket h(j) with sign s(j), sketch[b] = sum over j with h(j) = b of s(j) * gradient[j]. Over random
h and s, the dot product of two sketches is an unbiased estimate of that of the gradients; with two
parameters meeting in a bucket with probability 1 / D, its variance for unit vectors at cosine c is at
most (1 + c^2) / D (Weinberger et al., arXiv 0902.2206, lemma 2).

Here h is drawn block by block: each D parameters that follow each other are spread over the buckets by
an affine map i -> (a i + r) mod D with a odd, which no two of them share a bucket under, and with r
uniform, so that parameters of different blocks meet with probability 1 / D exactly. The estimate stays
unbiased, its variance no larger than above, and a block's additions touch each bucket once: they need
no order and no atomics, so that they are the same on every device and in every run.
"""

import torch
from torch import Tensor

from influcoder_ray.gradients.fused import kernels_on
from influcoder_ray.gradients.hashing import hash_octets, hash_of, key_of, signs_of


class CountSketch:
    """The sketch of one seed and width.

    Args:
        width: D, a power of two.
        seed: with the names of parameters it decides every bucket and sign.
    """

    def __init__(self, width: int, seed: int) -> None:
        self.width = width
        self.seed = seed
        # A bit for each parameter that was met: nearly half of the sketch's time went into hashing them anew.
        self._octets: dict[tuple[str, int, torch.device], Tensor] = {}
        self._maps: dict[tuple[str, int, torch.device], Tensor] = {}
        self._affine: dict[tuple[str, int], list[tuple[int, int]]] = {}
        self._places: dict[torch.device, Tensor] = {}

    def add(self, sketches: Tensor, gradients: Tensor, name: str) -> None:
        """Add a parameter's gradients to sketches, in place.

        Args:
            sketches: (N, D) float32.
            gradients: (N, rows, columns), any float type; row and column are an entry's place.
            name: the parameter's full name; the same name always meets the same buckets and signs.
        """
        flat = gradients.flatten(1)
        kernels = kernels_on(flat.device)
        if kernels is not None:
            octets = self._octets_of(flat.shape[1], name, flat.device)
            kernels.add_to_sketches(
                sketches, flat.float(), octets, self._maps_of(flat.shape[1], name, flat.device)
            )
            return
        signed = flat.float() * self.signs(flat.shape[1], name, flat.device)
        for buckets, block in zip(
            self.buckets(flat.shape[1], name, flat.device), signed.split(self.width, dim=1), strict=True
        ):
            sketches.index_add_(1, buckets, block)

    def pull_back(self, sketches: Tensor, shape: tuple[int, int], name: str) -> Tensor:
        """The transposed sketch: what a parameter's entries multiply in dot products with sketches.

        With S this sketch, <v, S g> = <S^T v, g> for every vector v and gradient g.

        Args:
            sketches: (N, D) float32.
            shape: (rows, columns) of the parameter.

        Returns:
            (N, rows, columns) float32.
        """
        count = shape[0] * shape[1]
        buckets = torch.cat(self.buckets(count, name, sketches.device))
        entries = sketches.index_select(1, buckets) * self.signs(count, name, sketches.device)
        return entries.unflatten(1, shape)

    def buckets(self, count: int, name: str, device: torch.device) -> list[Tensor]:
        """The bucket of each of a parameter's entries, block by block: int64 (at most D,) each."""
        if device not in self._places:
            self._places[device] = torch.arange(self.width, dtype=torch.int64, device=device)
        place = self._places[device][:count]
        return [
            (place[: count - block * self.width] * multiplier + shift) & (self.width - 1)
            for block, (multiplier, shift) in enumerate(self._affine_maps(count, name))
        ]

    def signs(self, count: int, name: str, device: torch.device) -> Tensor:
        """The sign of each of a parameter's entries: float32 (count,) of -1 and 1."""
        return signs_of(self._octets_of(count, name, device), count)

    def _affine_maps(self, count: int, name: str) -> list[tuple[int, int]]:
        """Multiplier and shift, modulo D, of each block of a parameter's entries."""
        if (name, count) not in self._affine:
            key = key_of(self.seed, "buckets", name)
            self._affine[name, count] = [
                ((hash_of(2 * block, key) | 1) % self.width, hash_of(2 * block + 1, key) % self.width)
                for block in range(-(-count // self.width))
            ]
        return self._affine[name, count]

    def _maps_of(self, count: int, name: str, device: torch.device) -> Tensor:
        """The same as int32 (blocks, 3), each multiplier's inverse modulo D between the two."""
        parameter = (name, count, device)
        if parameter not in self._maps:
            maps = [(m, pow(m, -1, self.width), shift) for m, shift in self._affine_maps(count, name)]
            self._maps[parameter] = torch.tensor(maps, dtype=torch.int32).to(device)
        return self._maps[parameter]

    def _octets_of(self, count: int, name: str, device: torch.device) -> Tensor:
        """The bits that stand for a parameter's signs."""
        parameter = (name, count, device)
        if parameter not in self._octets:
            self._octets[parameter] = hash_octets(count, key_of(self.seed, "signs", name), device)
        return self._octets[parameter]
