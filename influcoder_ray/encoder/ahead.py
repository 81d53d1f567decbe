"""Work that is done one step ahead, so that whoever uses its results need not wait for the next."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def one_ahead(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What `work` makes of each item, in order; a thread makes the next result while the last is used.

    Two results are held at most. What goes wrong in the thread is raised here, in its turn.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = None
        for item in items:
            following = thread.submit(work, item)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
