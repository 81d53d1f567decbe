"""Work that threads do ahead of whoever takes its results, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def in_order(work: Callable[[S], T], items: Iterable[S], *, threads: int, ahead: int) -> Iterator[T]:
    """The results of `work` on items, in their order.

    Args:
        threads: that work at once; items are taken by the thread that takes results.
        ahead: results, and items in work, that are held at most.
    """
    begun: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) >= ahead:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
