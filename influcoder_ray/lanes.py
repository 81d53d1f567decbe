"""Batches side by side on a CPU, each on cores of its own.

The threads of one product wait for each other at its end, some hundred times a batch, and for whichever of
them the system has put off. Threads that have a batch each meet nobody.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")

# Beyond so many lanes Python, which runs one thread at a time, would be waited for: each takes more cores.
_MOST = 8


class Map(Protocol):
    """As the built-in `map`: the results of `work`, in the order of its items."""

    def __call__(self, work: Callable[[S], T], items: Iterable[S], /) -> Iterator[T]: ...


def _lanes_of(cores: int) -> int:
    """As many lanes, of equally many cores each, as leave no more than an eighth of the cores idle."""
    return max(count for count in range(1, min(cores, _MOST) + 1) if 8 * (cores % count) <= cores)


@contextmanager
def lanes() -> Iterator[Map]:
    """While it lasts, torch's cores are shared out to lanes, which do what is mapped.

    Inference mode, which is a thread's own, holds there if it holds here.
    """
    cores = torch.get_num_threads()
    count = _lanes_of(cores)
    inference = torch.is_inference_mode_enabled()

    def begin() -> None:
        # Of the thread that says so, and of all that begin afterwards.
        torch.set_num_threads(cores // count)

    try:
        with ThreadPoolExecutor(count, "lane", initializer=begin) as pool:

            def side_by_side(work: Callable[[S], T], items: Iterable[S], /) -> Iterator[T]:
                def alone(item: S) -> T:
                    with torch.inference_mode(inference):
                        return work(item)

                return pool.map(alone, items)

            yield side_by_side
    finally:
        torch.set_num_threads(cores)
