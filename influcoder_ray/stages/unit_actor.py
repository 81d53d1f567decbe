"""The actor of a stage's pool: it reads, computes and commits units, and gives a summary of each."""

import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import ray

from influcoder_ray.errors import NoRoom, RunFailed, UserError
from influcoder_ray.stages.casualties import LOADING, Record, tell_of_hang
from influcoder_ray.stages.metrics import UnitMetrics
from influcoder_ray.stages.watch import Watch
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, Output, StageState
from influcoder_ray.tables.units import Unit

T = TypeVar("T")
_ATTEMPTS = 3


class UnitWork(Protocol):
    """What a stage does with a unit; made once an actor, so its constructor loads the models."""

    def read(self, unit: Unit) -> Any:
        """The unit's rows, from storage."""

    def process(self, unit: Unit, rows: Any, report: Callable[[int], None]) -> Output:
        """The stage's function; `report` takes the number of rows done since it was last called."""


class UnitActor:
    """Holds a stage's work and does its units, two at a time, of which one computes.

    Whatever goes wrong with a unit becomes its summary's error, and so does a work that cannot be made: the
    actor fails of nothing but its process's end, of which `Casualties` tells the next one.

    Args:
        work: makes the stage's work out of `arguments`.
        state: where the stage keeps its record: the output folder, the stage and its tables.
        hung_after_seconds: how long work in hand may give no sign of life.
        board: the actor that progress is told to.
        past: the `Casualties` of this stage.
    """

    def __init__(
        self,
        work: Callable[..., UnitWork],
        arguments: Mapping[str, Any],
        state: tuple[str, str, tuple[str, ...]],
        hung_after_seconds: float,
        board: Any,
        past: Any,
    ) -> None:
        root, stage, tables = state
        self._state = StageState(Place(root), stage, tables)
        self._board = board
        self._past = past
        self._in_hand = _InHand()
        # One thread loads and computes all: OpenMP keeps a team of threads for each that ever computed, and
        # once teams outnumber the cores its threads sleep at every barrier instead of spinning.
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="computing")
        self._metrics = UnitMetrics(stage)
        self._watch = Watch(hung_after_seconds, tell_of_hang(past))
        self._work = self._computing.submit(self._made, work, arguments).result()

    def __call__(self, batch: pa.Table) -> pa.Table:
        summaries = [self._summary(Unit.from_dict(json.loads(text))) for text in batch["unit"].to_pylist()]
        return pa.table({"summary": pa.array([json.dumps(s) for s in summaries], pa.string())})

    def _made(self, work: Callable[..., UnitWork], arguments: Mapping[str, Any]) -> "UnitWork | _Fault":
        """The work, or what keeps it from being made in every attempt."""
        past: Record = ray.get(self._past.record.remote(LOADING))
        if past.set_aside:
            return _cannot_begin(past.set_aside, past.stack)

        def make() -> UnitWork:
            with self._watch.over(LOADING, "loading"):
                return work(**arguments)

        made = _tried(make)
        if isinstance(made, _Fault):
            return _cannot_begin(made.text, made.stack)
        return made

    def _summary(self, unit: Unit) -> dict[str, Any]:
        done = self._done(unit)
        if isinstance(done, Manifest):
            return {"unit_id": unit.unit_id, "error": None, "manifest": done.to_json().decode()}
        where = "" if done.of_all else f"{unit}: "
        return {
            "unit_id": unit.unit_id,
            "error": f"{where}{done.text}",
            "of_all": done.of_all,
            "stack": done.stack,
        }

    def _done(self, unit: Unit) -> "Manifest | _Fault":
        """Do a unit; the manifest that vouches for it, or what went wrong with it in every attempt."""
        work = self._work
        if isinstance(work, _Fault):
            return work
        past: Record = ray.get(self._past.record.remote(unit.unit_id))
        if past.set_aside:
            return _Fault(past.set_aside, past.stack)
        with self._in_hand.take(alone=past.suspect):
            # Waited for: a worker that ends in the next moment must have been counted.
            ray.get(self._past.begin.remote(unit.unit_id))
            outcome = _tried(lambda: self._do(work, unit))
            self._past.end.remote(unit.unit_id)
        return outcome

    def _do(self, work: UnitWork, unit: Unit) -> Manifest:
        with self._watch.over(unit.unit_id, "reading"):
            rows = work.read(unit)
        output, seconds = self._computing.submit(self._computed, work, unit, rows).result()
        with self._watch.over(unit.unit_id, "writing"):
            manifest = self._state.commit(unit.unit_id, output, seconds)
        self._metrics.unit_done(output, seconds)
        self._board.set.remote(unit.unit_id, output.rows_in)
        return manifest

    def _computed(self, work: UnitWork, unit: Unit, rows: Any) -> tuple[Output, float]:
        """What the stage's function gives, and the seconds that it took."""
        done = 0
        with self._watch.over(unit.unit_id, "computing") as sign:

            def report(count: int) -> None:
                nonlocal done
                done += count
                sign()
                self._board.set.remote(unit.unit_id, done)

            started = time.monotonic()
            output = work.process(unit, rows, report)
            return output, time.monotonic() - started


@dataclass(frozen=True)
class _Fault:
    """What went wrong, in words and as a stack; `of_all`: every unit would meet it."""

    text: str
    stack: str
    of_all: bool = False


def _cannot_begin(text: str, stack: str) -> _Fault:
    how_on = "what is done is kept: once the cause is gone, run the same command again"
    return _Fault(f"workers cannot begin: {text}; {how_on}", stack, of_all=True)


def _tried(action: Callable[[], T]) -> T | _Fault:
    """What an action gives, tried again where a fault may pass."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return action()
        except NoRoom as error:
            # No stack: there is no room to write it down.
            return _Fault(str(error), "", of_all=True)
        except (UserError, RunFailed) as error:
            # Said by code that knows: to try again would say the same.
            return _Fault(_noted(str(error), error), traceback.format_exc())
        except Exception as error:  # noqa: BLE001 - a unit that keeps failing must not take the others along
            text = f"failed {_ATTEMPTS} times, the last time with {type(error).__name__}: {error}"
            fault = _Fault(_noted(text, error), traceback.format_exc())
            if attempt < _ATTEMPTS:
                time.sleep(2.0 ** (attempt - 1))
    return fault


def _noted(text: str, error: Exception) -> str:
    """What is said of an error, with what was noted on its way: which of a unit's files it comes of."""
    return "; ".join([text, *getattr(error, "__notes__", ())])


class _InHand:
    """The units that a worker has in hand: several together, or one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._alone = False

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        """Have a unit in hand, once those that it cannot stand beside are out of it."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._alone or (alone and self._count)))
            self._count += 1
            self._alone = alone
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._alone = False
                self._changed.notify_all()
