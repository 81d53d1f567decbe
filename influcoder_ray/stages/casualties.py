"""What became of workers that ended amid their work: which units to suspect, and which to set aside."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from influcoder_ray.stages.cluster import beside_the_driver

_ENDS, _HANGS, _ERRORS = 6, 2, 3
# A worker has two units in hand. From here on a unit is done with no other beside it, so that what ends its
# worker is known, and its neighbours are not blamed for it.
_SUSPECT_AFTER = 2
LOADING = "loading"
_TELLING_SECONDS = 30.0


@dataclass(frozen=True)
class Record:
    """A unit's past in this run.

    `set_aside` says why it is not to be done again, and is empty where it is; `stack` is where the last
    worker hung, if one did. A suspect is to be done with no other unit beside it.
    """

    set_aside: str = ""
    stack: str = ""
    suspect: bool = False


class Casualties:
    """Counts the workers that ended with a unit in hand; one actor a stage, which the driver outlasts.

    A worker that is killed cannot say so, so a unit that is begun counts as one whose worker ended until the
    worker says otherwise. Machines go and come by the dozen where they are cheap: it takes six ends to set a
    unit aside, two hangs, which are no machine's fault, and three errors in the same words.
    """

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()
        self._hung: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        self._raised: Counter[tuple[str, str]] = Counter()

    def record(self, unit_id: str) -> Record:
        """What is known of a unit, or of `LOADING`, before it is begun."""
        hung, ended = self._hung.get(unit_id, []), self._begun[unit_id]
        if len(hung) >= _HANGS:
            text, stack = hung[-1]
            return Record(f"{len(hung)} workers hung, the last one {text}", stack)
        if ended >= _ENDS:
            why = "out of memory, a crash, or machines that went"
            return Record(f"{ended} workers ended while they had it in hand ({why})")
        for (key, text), times in self._raised.items():
            if key == unit_id and times >= _ERRORS:
                return Record(f"failed {times} times with {text}")
        return Record(suspect=ended >= _SUSPECT_AFTER)

    def begin(self, unit_id: str) -> None:
        """A worker takes the unit in hand."""
        self._begun[unit_id] += 1

    def end(self, unit_id: str) -> None:
        """The worker has lived through it, whatever came of it."""
        del self._begun[unit_id]

    def hung(self, unit_id: str, text: str, stack: str) -> None:
        """A worker that hangs in the unit says so, and ends."""
        self._hung[unit_id].append((text, stack))

    def raised(self, unit_id: str, text: str) -> None:
        """An error ended the worker's try; the same words again and again are no passing fault."""
        self._raised[unit_id, text] += 1


def tell_of_hang(past: Any) -> Callable[[str, str, str], None]:
    """What tells `Casualties` of a hang, and waits until it knows: the process ends thereafter."""

    def tell(key: str, text: str, stack: str) -> None:
        ray.get(past.hung.remote(key, text, stack), timeout=_TELLING_SECONDS)

    return tell


@contextmanager
def counted() -> Iterator[Any]:
    """The actor of a stage, on the driver's machine, while the stage lasts."""
    actor = beside_the_driver(Casualties)
    try:
        yield actor
    finally:
        ray.kill(actor)
