"""Seeded randomness as a pure function of (seed, name, position): computed, never stored.

A counter-based hash gives the same numbers on every worker, device and order of execution, where a
generator's stream would not.
"""

import hashlib

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


def hash_bits(count: int, key: tuple[int, int], device: torch.device) -> Tensor:
    """Single hashed bits as float32 (count,) of 0 and 1: each hash gives 32 of them."""
    words = hash_positions(0, -(-count // 32), key, device)
    bits = (words[:, None] >> torch.arange(32, device=device)) & 1
    return bits.flatten()[:count].float()


def uniform(count: int, key: tuple[int, int], bound: float, device: torch.device) -> Tensor:
    """Float32 numbers (count,), uniform in (-bound, bound)."""
    bits = hash_positions(0, count, key, device).double()
    return (((bits + 0.5) / 2**32 * 2 - 1) * bound).float()


def _permute(x: Tensor) -> Tensor:
    # Products of two 32-bit numbers wrap in int64; their low 32 bits, which are kept, do not.
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW_32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _LOW_32
    return x ^ (x >> 16)
