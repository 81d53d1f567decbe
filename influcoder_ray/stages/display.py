"""How far a stage has come: workers report to a small actor, the driver shows it with the time left."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

_POLL_SECONDS = 0.5
_LINE_SECONDS = 15.0
_TELLING_SECONDS = 30.0


class Board:
    """Counts what workers have done, by worker key; `note` and `total` are the last that any gave."""

    def __init__(self, total: int | None) -> None:
        self._done: dict[str, int] = {}
        self._note = ""
        self._total = total

    def set(self, key: str, done: int, note: str = "", total: int | None = None) -> None:
        self._done[key] = done
        self._note = note or self._note
        self._total = total or self._total

    def read(self) -> tuple[int, int | None, str]:
        return sum(self._done.values()), self._total, self._note


class Display:
    """What a person sees while stages run: a bar in a terminal, a line every so often in a log.

    Args:
        expected_seconds: what each stage is expected to take, if that is known: the time left is then
            that of the whole run, corrected by how the stages so far compared with what was expected.
    """

    def __init__(self, console: Console, expected_seconds: Mapping[str, float] | None = None) -> None:
        self.console = console
        self._expected = dict(expected_seconds or {})
        self._spent: dict[str, float] = {}

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Any]:
        """Show a stage's progress while it lasts; workers report to the board that it gives.

        Args:
            total: how many `unit`s (rows, steps) there are; None where workers will tell, or nobody knows.
        """
        import ray

        from influcoder_ray.stages.cluster import beside_the_driver

        board = beside_the_driver(Board, total)
        stop = threading.Event()
        started = time.monotonic()
        thread = threading.Thread(target=self._show, args=(name, unit, board, stop), daemon=True)
        thread.start()
        try:
            yield board
        finally:
            stop.set()
            thread.join()
            self._spent[name] = time.monotonic() - started
            ray.kill(board)

    def _show(self, name: str, unit: str, board: Any, stop: threading.Event) -> None:
        import ray

        clock = _Clock()
        if self.console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with Progress(*columns, TextColumn(unit + "  {task.fields[left]}"), console=self.console) as bar:
                task = bar.add_task(f"  {name}", total=None, left="starting")
                while not stop.wait(_POLL_SECONDS):
                    done, total, note = ray.get(board.read.remote())
                    left = self._left(name, clock, done, total)
                    bar.update(task, completed=done, total=total, left=f"{left}  {note}".strip())
                done, total, note = ray.get(board.read.remote())
                bar.update(task, completed=done, total=total, left=note)
            return
        shown = time.monotonic()
        while not stop.wait(_POLL_SECONDS):
            done, total, note = ray.get(board.read.remote())
            left = self._left(name, clock, done, total)
            if time.monotonic() - shown >= _LINE_SECONDS:
                shown = time.monotonic()
                of = f" of {total:,}" if total is not None else ""
                self.say(f"  {name}: {done:,}{of} {unit}, {left}{'  ' + note if note else ''}")

    def _left(self, name: str, clock: "_Clock", done: int, total: int | None) -> str:
        stage_left = clock.seconds_left(done, total)
        if name not in self._expected:
            return f"{_minutes(stage_left)} left" if stage_left is not None else "starting"
        later = list(self._expected)[list(self._expected).index(name) + 1 :]
        rest = sum(self._expected[stage] for stage in later)
        known = {s: t for s, t in self._spent.items() if s in self._expected}
        if stage_left is not None:
            known[name] = clock.seconds() + stage_left
        else:
            rest += max(0.0, self._expected[name] - clock.seconds())
        taken, expected = sum(known.values()), sum(self._expected[stage] for stage in known)
        # Short stages are mostly start-up: they say little about how fast this machine is.
        pace = taken / expected if expected >= _TELLING_SECONDS else 1.0
        return f"about {_minutes((stage_left or 0.0) + rest * pace)} left in all"


class _Clock:
    """The time left, from the pace since the first report: starting up says nothing about the rest."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def seconds_left(self, done: int, total: int | None) -> float | None:
        now = time.monotonic()
        if self._first is None:
            if done:
                self._first = now, done
            return None
        began, before = self._first
        if total is None or done <= before:
            return None
        return max(0.0, (total - done) * (now - began) / (done - before))


def _minutes(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
