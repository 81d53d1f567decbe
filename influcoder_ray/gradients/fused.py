"""Whether the fused kernels run on a device; plain torch does the same everywhere."""

import importlib.util
from functools import cache
from types import ModuleType

import torch

# Of the first generation (Ampere) whose tensor cores take bfloat16.
_LEAST_CAPABILITY = (8, 0)


def kernels_on(device: torch.device) -> ModuleType | None:
    """The module `kernels` where this device's are compiled by Triton and Triton is installed; else None."""
    return _imported("kernels", device)


def pointwise_kernels_on(device: torch.device) -> ModuleType | None:
    """The module `pointwise_kernels`, likewise."""
    return _imported("pointwise_kernels", device)


@cache
def _imported(name: str, device: torch.device) -> ModuleType | None:
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return None
    return importlib.import_module(f"influcoder_ray.gradients.{name}")
