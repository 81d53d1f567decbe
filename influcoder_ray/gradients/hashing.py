"""Seeded randomness as a pure function of (seed, name, position): computed, never stored.

A counter-based hash gives the same numbers on every worker, device and order of execution, where a
generator's stream would not.
"""

import hashlib
from functools import cache
from typing import Any

import torch
from torch import Tensor

_LOW_32 = 0xFFFF_FFFF


def key_of(seed: int, *names: str) -> tuple[int, int]:
    """Two 32-bit keys for a name under a seed."""
    digest = hashlib.sha256("\x1f".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def hash_positions(first: int, count: int, key: tuple[int, int], device: torch.device) -> Tensor:
    """32 hashed bits, as int64 (count,), of each position from `first` on.

    Two keyed rounds of a 32-bit integer permutation with full avalanche (the multipliers are the
    "lowbias32" pair that Chris Wellons found by search and placed in the public domain). Integer
    arithmetic alone: equal on CPU and GPU.
    """
    position = torch.arange(first, first + count, dtype=torch.int64, device=device)
    high = position >> 32
    mixed = _permute((position & _LOW_32) ^ key[0])
    return _permute(((mixed + key[1]) & _LOW_32) ^ high)


def hash_of(position: int, key: tuple[int, int]) -> int:
    """The hashed bits of one position: `hash_positions` in Python's own integers."""
    return _permute(((_permute((position & _LOW_32) ^ key[0]) + key[1]) & _LOW_32) ^ (position >> 32))


def hash_octets(count: int, key: tuple[int, int], device: torch.device) -> Tensor:
    """The hashes' bits, eight by eight: uint8 of at least `count` bits, the lowest of each hash first."""
    words = hash_positions(0, -(-count // 32), key, device)
    octets = (words[:, None] >> torch.arange(0, 32, 8, device=device)) & 0xFF
    return octets.flatten().to(torch.uint8)


def signs_of(octets: Tensor, count: int) -> Tensor:
    """Float32 numbers (count,) of -1 and 1, one for each bit."""
    return _signs_of_octets(octets.device).index_select(0, octets.int()).flatten()[:count]


@cache
def _signs_of_octets(device: torch.device) -> Tensor:
    """Float32 (256, 8): the signs that the bits of a number below 256 stand for, lowest first."""
    bits = (torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)) & 1
    return (1 - 2 * bits).float()


def uniform(count: int, key: tuple[int, int], bound: float, device: torch.device) -> Tensor:
    """Float32 numbers (count,), uniform in (-bound, bound)."""
    bits = hash_positions(0, count, key, device).double()
    return (((bits + 0.5) / 2**32 * 2 - 1) * bound).float()


def _permute(x: Any) -> Any:
    # Products of two 32-bit numbers wrap in int64; their low 32 bits, which are kept, do not.
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW_32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _LOW_32
    return x ^ (x >> 16)
