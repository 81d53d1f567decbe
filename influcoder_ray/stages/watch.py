"""A watch over work that may hang: it tells what gave no sign of life, and ends the process."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# Looked at this often in the time that work may be silent, so that a hang is noticed a tenth late at most.
_LOOKS = 10
_LONGEST_WAIT_SECONDS = 30.0
_HUNG_STATUS = 70


@dataclass
class _Step:
    """Work of one thread: what it is done for, what it is, and when it last gave a sign."""

    key: str
    what: str
    sign: float


class Watch:
    """Ends this process when a step gives no sign of life for too long; Ray then starts another.

    A process that hangs cannot be mended from inside: a thread that waits for a device, a lock or a broken
    filesystem cannot be interrupted. One that holds Python's interpreter lock meanwhile is not found out.

    Args:
        seconds: how long a step may be silent.
        tell: called before the end with the key of the step, what it did and for how long it was silent, and
            the stack of its thread.
    """

    def __init__(self, seconds: float, tell: Callable[[str, str, str], None]) -> None:
        self._seconds = seconds
        self._tell = tell
        self._steps: dict[int, _Step] = {}
        self._changing = threading.Lock()
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    @contextmanager
    def over(self, key: str, what: str) -> Iterator[Callable[[], None]]:
        """Watch the calling thread while it is in here; gives the function that is its sign of life.

        Args:
            key: what the work is done for, a unit's id, say.
            what: what is done, in words.
        """
        thread = threading.get_ident()
        step = _Step(key, what, time.monotonic())

        def sign() -> None:
            step.sign = time.monotonic()

        with self._changing:
            self._steps[thread] = step
        try:
            yield sign
        finally:
            with self._changing:
                del self._steps[thread]

    def _look(self) -> None:
        while True:
            time.sleep(min(self._seconds / _LOOKS, _LONGEST_WAIT_SECONDS))
            with self._changing:
                steps = dict(self._steps)
            for thread, step in steps.items():
                silent = time.monotonic() - step.sign
                if silent > self._seconds:
                    self._end(thread, step, silent)

    def _end(self, thread: int, step: _Step, silent: float) -> None:
        frame = sys._current_frames().get(thread)
        stack = "".join(traceback.format_stack(frame)) if frame else ""
        try:
            self._tell(step.key, f"{step.what}: no sign of life for {silent:.0f} s", stack)
        finally:
            # Neither finally clauses nor exit handlers: they could wait for what hangs.
            os._exit(_HUNG_STATUS)
