"""How much memory this process takes of its own, now and at the most."""

import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_STATUS = Path("/proc/self/status")
_WATCH_SECONDS = 0.05

T = TypeVar("T")


def own_bytes() -> int | None:
    """Memory of this process that it shares with none, as the kernel tells it, or None where it does not."""
    if not _STATUS.exists():
        return None
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


@dataclass(frozen=True)
class Growth:
    """By how much a process grew: at the most while something was done, and what is still held of it."""

    most: int | None
    held: int | None


def watched(work: Callable[[], T]) -> tuple[T, Growth]:
    """What work gives, and by how much this process grew, looked at twenty times a second."""
    gc.collect()
    before = own_bytes()
    ended = threading.Event()
    seen = [before or 0]

    def watch() -> None:
        while not ended.wait(_WATCH_SECONDS):
            seen.append(own_bytes() or 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        found = work()
    finally:
        ended.set()
        watcher.join()
    after = own_bytes()
    if before is None or after is None:
        return found, Growth(None, None)
    return found, Growth(max(*seen, after) - before, after - before)
