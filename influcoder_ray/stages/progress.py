"""How far a stage has come: workers report to a small actor, the driver shows it with the time left."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

_POLL_SECONDS = 0.5
_LINE_SECONDS = 15.0


class Board:
    """Counts what workers have done, by worker key; `note` is the last word of any of them."""

    def __init__(self) -> None:
        self._done: dict[str, int] = {}
        self._note = ""

    def set(self, key: str, done: int, note: str = "") -> None:
        self._done[key] = done
        self._note = note or self._note

    def read(self) -> tuple[int, str]:
        return sum(self._done.values()), self._note


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
        self.console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator["ray.actor.ActorHandle"]:
        """Show a stage's progress while it lasts; workers report to the board that it gives.

        Args:
            total: how many `unit`s (rows, steps) there are, None where that is not known.
        """
        board = ray.remote(Board).options(num_cpus=0).remote()
        stop = threading.Event()
        started = time.monotonic()
        thread = threading.Thread(target=self._show, args=(name, total, unit, board, stop), daemon=True)
        thread.start()
        try:
            yield board
        finally:
            stop.set()
            thread.join()
            self._spent[name] = time.monotonic() - started
            ray.kill(board)

    def _show(
        self, name: str, total: int | None, unit: str, board: "ray.actor.ActorHandle", stop: threading.Event
    ) -> None:
        clock = _Clock(total)
        if self.console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            with Progress(
                *columns, TextColumn("{task.fields[unit]}  {task.fields[left]}"), console=self.console
            ) as bar:
                task = bar.add_task(name, total=total, unit=unit, left="starting")
                while not stop.wait(_POLL_SECONDS):
                    done, note = ray.get(board.read.remote())
                    left = self._left(name, clock, done)
                    bar.update(task, completed=done, left=f"{left}  {note}".strip())
                done, note = ray.get(board.read.remote())
                bar.update(task, completed=done, left=note)
            return
        shown = time.monotonic()
        while not stop.wait(_POLL_SECONDS):
            done, note = ray.get(board.read.remote())
            left = self._left(name, clock, done)
            if time.monotonic() - shown >= _LINE_SECONDS:
                shown = time.monotonic()
                of = f" of {total:,}" if total is not None else ""
                self.say(f"  {name}: {done:,}{of} {unit}, {left}{'  ' + note if note else ''}")

    def _left(self, name: str, clock: "_Clock", done: int) -> str:
        stage_left = clock.seconds_left(done)
        if name not in self._expected:
            return f"{_minutes(stage_left)} left" if stage_left is not None else "starting"
        if stage_left is None:
            stage_left = max(0.0, self._expected[name] * self._pace() - clock.seconds())
        later = list(self._expected)[list(self._expected).index(name) + 1 :]
        rest = sum(self._expected[stage] for stage in later) * self._pace()
        return f"about {_minutes(stage_left + rest)} left in all"

    def _pace(self) -> float:
        """How many times as long as expected the stages so far have taken."""
        known = [stage for stage in self._spent if stage in self._expected]
        expected = sum(self._expected[stage] for stage in known)
        return sum(self._spent[stage] for stage in known) / expected if expected else 1.0


class _Clock:
    """The time left, from the pace since the first report: starting up says nothing about the rest."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def seconds_left(self, done: int) -> float | None:
        now = time.monotonic()
        if self._first is None:
            if done:
                self._first = now, done
            return None
        began, before = self._first
        if self._total is None or done <= before:
            return None
        return max(0.0, (self._total - done) * (now - began) / (done - before))


def _minutes(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time"
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
