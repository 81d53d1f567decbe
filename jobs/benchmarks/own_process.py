"""A part of a benchmark in a process of its own, whose memory is its own too."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from influcoder_ray.errors import RunFailed

Figures = dict[str, float | None]


def told_by_process(name: str, work: Callable[..., None], *arguments: Any) -> Figures:
    """What a process of its own sends through the pipe that `work` is given before its arguments.

    Args:
        name: what the process is called in an error.

    Raises:
        RunFailed: it ended before it had anything to tell.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, *arguments))
    process.start()
    there.close()
    try:
        figures: Figures = here.recv()
    except EOFError as error:
        process.join()
        raise RunFailed(f"{name} ended with status {process.exitcode}") from error
    process.join()
    return figures
