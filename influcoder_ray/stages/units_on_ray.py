"""Running a stage's units over a pool of actors with Ray Data, each done once and committed whole.

Ray Data carries the units and their summaries, a few hundred bytes each; rows go from storage to
actor to storage. An actor works on two units at a time, of which only one computes: the other is
being read or written meanwhile.
"""

import json
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray.data

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import RunFailed, UserError
from influcoder_ray.stages.cluster import Reservation
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.metrics import UnitMetrics
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, Output, StageState
from influcoder_ray.tables.units import Unit

_ATTEMPTS = 3


class UnitWork(Protocol):
    """What a stage does with a unit; made once an actor, so its constructor loads the models."""

    def read(self, unit: Unit) -> Any:
        """The unit's rows, from storage."""

    def process(self, unit: Unit, rows: Any, report: Callable[[int], None]) -> Output:
        """The stage's function; `report` takes the number of rows done since it was last called."""


@dataclass(frozen=True)
class WorkPlan:
    """Units and what to do with them. `arguments` are small: they travel to every actor."""

    state: StageState
    units: Sequence[Unit]
    work: Callable[..., UnitWork]
    arguments: Mapping[str, Any]


class UnitActor:
    """The actor of the pool: reads, computes and commits units, and gives a summary of each."""

    def __init__(
        self,
        work: Callable[..., UnitWork],
        arguments: Mapping[str, Any],
        state: tuple[str, str, tuple[str, ...]],
        board: Any,
    ) -> None:
        root, stage, tables = state
        self._work = work(**arguments)
        self._state = StageState(Place(root), stage, tables)
        self._board = board
        self._computing = threading.Lock()
        self._metrics = UnitMetrics(stage)

    def __call__(self, batch: pa.Table) -> pa.Table:
        summaries = [self._summary(Unit.from_dict(json.loads(text))) for text in batch["unit"].to_pylist()]
        return pa.table({"summary": pa.array([json.dumps(s) for s in summaries], pa.string())})

    def _summary(self, unit: Unit) -> dict[str, Any]:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._do(unit)
                return {"unit_id": unit.unit_id, "error": None}
            except Exception as error:  # noqa: BLE001 - a unit that keeps failing must not take the others along
                last = f"{type(error).__name__}: {error}"
                trace = traceback.format_exc()
                if attempt < _ATTEMPTS:
                    time.sleep(2.0 ** (attempt - 1))
        where = f"{unit.relative}, rows {unit.first_row} on"
        return {"unit_id": unit.unit_id, "error": f"{where}: {last}", "traceback": trace}

    def _do(self, unit: Unit) -> None:
        rows = self._work.read(unit)
        done = 0

        def report(count: int) -> None:
            nonlocal done
            done += count
            self._board.set.remote(unit.unit_id, done)

        with self._computing:
            started = time.monotonic()
            output = self._work.process(unit, rows, report)
            seconds = time.monotonic() - started
        self._state.commit(unit.unit_id, output, seconds)
        self._metrics.unit_done(output, seconds)
        self._board.set.remote(unit.unit_id, output.rows_in)


def run_units(
    plan: WorkPlan, fingerprint: Fingerprint, reservation: Reservation, display: Display, unit: str = "rows"
) -> dict[str, Manifest]:
    """Do the units that are not done yet; returns the manifests of all of them, by unit.

    Raises:
        RunFailed: some units failed in every attempt; the others are done, and a new run does what is
            missing.
    """
    plan.state.begin(fingerprint)
    wanted = {u.unit_id: u for u in plan.units}
    done = {k: v for k, v in plan.state.manifests().items() if k in wanted}
    todo = [u for u in plan.units if u.unit_id not in done]
    if todo:
        if done:
            display.say(f"  {plan.state.stage}: {len(done)} of {len(wanted)} units are done already")
        failures = _run(plan, todo, reservation, display, unit)
        if failures:
            raise RunFailed(
                f"{plan.state.stage}: {len(failures)} of {len(wanted)} units failed {_ATTEMPTS} times each, "
                f"the first one with {failures[0]['error']}; the others are kept: run the same command again"
            )
    found = plan.state.manifests()
    missing = wanted.keys() - found.keys()
    if missing:
        raise RunFailed(
            f"{plan.state.stage}: {len(missing)} units left no manifest; run the same command again"
        )
    return {k: found[k] for k in wanted}


def one_unit(
    record: StageState,
    unit_id: str,
    work: Callable[..., Manifest],
    settings: PipelineSettings,
    reservation: Reservation,
    **arguments: Any,
) -> Manifest:
    """Do a unit that is a step of its own, unless it is done; on a worker, for the driver's may be small.

    Args:
        work: called with settings, record, unit id, the number of threads and `arguments`; it commits the
            unit.

    Raises:
        UserError: the work found that something cannot be had.
    """
    held = record.manifests().get(unit_id)
    if held is not None:
        return held
    task = ray.remote(work).options(num_cpus=reservation.cpus, num_gpus=reservation.gpus)
    try:
        manifest: Manifest = ray.get(task.remote(settings, record, unit_id, reservation.threads, **arguments))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            # As one line, without the worker's traceback.
            raise error.cause from None
        raise
    return manifest


def _run(
    plan: WorkPlan, todo: Sequence[Unit], reservation: Reservation, display: Display, unit: str
) -> list[dict[str, Any]]:
    counts = [u.rows for u in todo]
    total = None if None in counts else sum(c for c in counts if c is not None)
    state = (plan.state.root.uri, plan.state.stage, plan.state.tables)
    with display.stage(plan.state.stage, total, unit) as board:
        items = [{"unit": json.dumps(u.to_dict())} for u in todo]
        summaries = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            UnitActor,
            fn_constructor_kwargs={
                "work": plan.work,
                "arguments": dict(plan.arguments),
                "state": state,
                "board": board,
            },
            compute=ray.data.ActorPoolStrategy(
                min_size=min(reservation.min_workers, len(todo)),
                max_size=min(reservation.max_workers, len(todo)),
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,
            ),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=reservation.cpus,
            num_gpus=reservation.gpus or None,
        )
        read = [json.loads(row["summary"]) for row in summaries.iter_rows()]
    failures = [summary for summary in read if summary["error"]]
    for failure in failures:
        text = json.dumps(failure, indent=2).encode()
        (
            plan.state.root / "_state" / plan.state.stage / "failures" / f"{failure['unit_id']}.json"
        ).write_whole(text)
    return failures
