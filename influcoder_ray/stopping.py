"""Ctrl-C and SIGTERM: how a run is told to stop, by a person, `ray job stop` or a machine that goes away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from influcoder_ray.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Told:
    """The signal that came last; Ctrl-C where Python's own handler took it."""

    number: int = signal.SIGINT


def listen() -> None:
    """Let either signal interrupt the main thread; after `ray.init`, which puts handlers of its own in place.

    The interrupt is a KeyboardInterrupt: Ray's waiting calls know no other, and would go on waiting.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        _Told.number = number
        raise KeyboardInterrupt

    # Python hands signals to the main thread alone.
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, interrupt)


@contextmanager
def stoppable() -> Iterator[None]:
    """What runs in here ends in `Stopped` when the process is told to stop.

    Raises:
        Stopped: with the signal's number.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise Stopped(_Told.number) from interrupt
