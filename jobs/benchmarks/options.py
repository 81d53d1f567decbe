"""What the options of several benchmarks have in common: their types, and the device they name."""

import argparse
import platform
from collections.abc import Callable

import torch

from influcoder_ray.errors import UserError


def at_least(least: int) -> Callable[[str], int]:
    """An argument's type: a whole number with a lower bound."""

    def whole_number(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return number

    return whole_number


def find_device(name: str) -> torch.device:
    """The device of an option --device: auto, cpu or cuda.

    Raises:
        UserError: torch sees no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: torch sees no GPU here; give cpu, or a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def name_of_device(device: torch.device) -> str:
    """What the device is, for a person."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU"
