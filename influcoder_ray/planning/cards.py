"""Cards by their names, and how many floating-point operations each can do at most."""

import re

import torch

from influcoder_ray.errors import UserError

# Dense peaks (no sparsity) of float32, TF32 and bfloat16 in FLOP/s, by the name that the driver gives
# the card. Source: NVIDIA's data sheets of each card. A card that is not here has no utilisation.
_PEAKS: dict[str, dict[str, float]] = {
    "NVIDIA A100-SXM4-40GB": {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12},
    "NVIDIA A100-SXM4-80GB": {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12},
    "NVIDIA A100 80GB PCIe": {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12},
    "NVIDIA H100 80GB HBM3": {"float32": 67e12, "tf32": 494.7e12, "bfloat16": 989.4e12},
    "NVIDIA H100 PCIe": {"float32": 51e12, "tf32": 378e12, "bfloat16": 756e12},
    "NVIDIA H200": {"float32": 67e12, "tf32": 494.7e12, "bfloat16": 989.4e12},
    "NVIDIA L4": {"float32": 30.3e12, "tf32": 60e12, "bfloat16": 121e12},
    "NVIDIA L40S": {"float32": 91.6e12, "tf32": 183e12, "bfloat16": 362e12},
}


def peak_flops_per_second(device: torch.device, dtype: str) -> float | None:
    """The card's dense peak for a number type; None on a CPU and for a card that is not known."""
    if device.type != "cuda":
        return None
    return _PEAKS.get(torch.cuda.get_device_name(device), {}).get(dtype)


def find_card(name: str, dtype: str) -> tuple[str, float]:
    """The card that goes by a name, and its dense peak in FLOP/s for a number type.

    Args:
        name: as the driver gives it, or some of its words ("H100"). Where several cards have these words,
            the slowest of them is taken.

    Raises:
        UserError: no card has these words.
    """
    asked = _words(name)
    found = [card for card in _PEAKS if asked and asked <= _words(card)]
    if not found:
        raise UserError(f"--card: {name!r} is not known; known are {', '.join(_PEAKS)}")
    slowest = min(found, key=lambda card: _PEAKS[card][dtype])
    return slowest, _PEAKS[slowest][dtype]


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", name.lower()))
