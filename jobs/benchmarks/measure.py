"""What one pass over some rows costs: seconds, positions computed, peak memory."""

import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

_RESET_PEAK = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Pass:
    """The cost of one pass.

    `positions` counts every token and every padding that went through the model, `largest_batch` those
    of the largest batch. `peak_memory_bytes` is, on a GPU, the most that torch held allocated; on a CPU
    the process's highest resident size as the kernel records it (VmHWM, set back before the pass), with
    the weights and the interpreter in it. It is None where the kernel keeps no such record.
    """

    seconds: float
    positions: int
    largest_batch: int
    peak_memory_bytes: int | None


def one_pass(work: Callable[[], object], model: nn.Module, device: torch.device) -> Pass:
    """Run `work` once and measure it; work queued on a GPU has ended when the clock stops."""
    batches: list[int] = []
    with _batch_sizes(model, batches):
        _reset_peak(device)
        _finish(device)
        start = time.perf_counter()
        work()
        _finish(device)
        seconds = time.perf_counter() - start
    return Pass(seconds, sum(batches), max(batches), _peak_bytes(device))


@contextmanager
def _batch_sizes(model: nn.Module, batches: list[int]) -> Iterator[None]:
    """While it lasts, the number of token ids of every forward pass is appended to `batches`."""

    def count(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        batches.append(inputs[0].numel())

    handle = model.get_input_embeddings().register_forward_pre_hook(count)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access(_RESET_PEAK, os.W_OK):
        # What an earlier pass freed may still be held by the C library: it would count for this one.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        _RESET_PEAK.write_text("5")


def _peak_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return process_peak_bytes() if os.access(_RESET_PEAK, os.W_OK) else None


def process_peak_bytes() -> int | None:
    """The process's highest resident size since it began or the record was set back; None if not kept."""
    if not _STATUS.exists():
        return None
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024
