"""Running a stage's units over a pool of actors with Ray Data, each done once and committed whole.

Ray Data carries the units and their summaries, a few hundred bytes each; rows go from storage to
actor to storage. An actor works on two units at a time, of which only one computes: the other is
being read or written meanwhile.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import RunFailed
from influcoder_ray.stages import casualties
from influcoder_ray.stages.cluster import Reservation, result_of
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.unit_actor import UnitActor, UnitWork
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.state import Manifest, StageState
from influcoder_ray.tables.units import Unit

# Ray Data holds some ten kilobytes of the driver's memory for every unit that it was given.
_UNITS_AT_ONCE = 4096
_MACHINES_LOST = 10


@dataclass(frozen=True)
class WorkPlan:
    """Units and what to do with them. `arguments` are small: they travel to every actor."""

    state: StageState
    units: Sequence[Unit]
    work: Callable[..., UnitWork]
    arguments: Mapping[str, Any]


def run_units(
    plan: WorkPlan, fingerprint: Fingerprint, reservation: Reservation, display: Display, unit: str = "rows"
) -> dict[str, Manifest]:
    """Do the units that are not done yet; returns the manifests of all of them, by unit.

    Raises:
        RunFailed: some units could not be done; the others are, and a new run does what is missing. Or the
            workers could not begin at all.
    """
    plan.state.begin(fingerprint)
    wanted = {u.unit_id for u in plan.units}
    done = {k: v for k, v in plan.state.take_up(wanted).items() if k in wanted}
    todo = [u for u in plan.units if u.unit_id not in done]
    if todo:
        if done:
            display.say(f"  {plan.state.stage}: {len(done)} of {len(wanted)} units are done already")
        failures = _run(plan, todo, done, reservation, display, unit)
        if failures:
            raise RunFailed(
                f"{plan.state.stage}: {len(failures)} of {len(wanted)} units could not be done, the first "
                f"one being {failures[0]['error']}; the others are kept: run the same command again"
            )
    found = plan.state.whole(done.values())
    missing = wanted - found.keys()
    if missing:
        raise RunFailed(
            f"{plan.state.stage}: {len(missing)} units left no manifest; run the same command again"
        )
    return {u.unit_id: found[u.unit_id] for u in plan.units}


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
        RunFailed: it could not go on.
    """
    held = record.manifests().get(unit_id)
    if held is not None:
        return held
    task = ray.remote(work).options(
        num_cpus=reservation.cpus, num_gpus=reservation.gpus, max_retries=_MACHINES_LOST
    )
    manifest: Manifest = result_of(task.remote(settings, record, unit_id, reservation.threads, **arguments))
    return manifest


def _run(
    plan: WorkPlan,
    todo: Sequence[Unit],
    done: dict[str, Manifest],
    reservation: Reservation,
    display: Display,
    unit: str,
) -> list[dict[str, Any]]:
    """Do units, and put the manifests that they leave among those of units that are done; the failures."""
    counts = [u.rows for u in todo]
    total = None if None in counts else sum(c for c in counts if c is not None)
    failures = []
    fresh: list[Manifest] = []
    with casualties.counted() as past, display.stage(plan.state.stage, total, unit) as board:
        for summary in _summaries(plan, todo, reservation, board, past):
            if not summary["error"]:
                manifest = Manifest.from_json(summary["manifest"].encode())
                done[manifest.unit_id] = manifest
                fresh.append(manifest)
                if len(fresh) == _UNITS_AT_ONCE:
                    plan.state.note(fresh)
                    fresh = []
                continue
            if summary["stack"] or not summary["of_all"]:
                _keep(plan.state, summary)
            if summary["of_all"]:
                raise RunFailed(f"{plan.state.stage}: {summary['error']}")
            failures.append(summary)
    return failures


def _summaries(
    plan: WorkPlan, todo: Sequence[Unit], reservation: Reservation, board: Any, past: Any
) -> Iterator[dict[str, Any]]:
    """Each unit's summary as it comes; an error says whether it is that of all units."""
    for start in range(0, len(todo), _UNITS_AT_ONCE):
        units = todo[start : start + _UNITS_AT_ONCE]
        most = min(reservation.max_workers, len(units))
        found = ray.data.from_items(
            [{"unit": json.dumps(u.to_dict())} for u in units], override_num_blocks=len(units)
        ).map_batches(
            UnitActor,
            fn_constructor_kwargs={
                "work": plan.work,
                "arguments": dict(plan.arguments),
                "state": (plan.state.root.uri, plan.state.stage, plan.state.tables),
                "hung_after_seconds": reservation.hung_after_seconds,
                "board": board,
                "past": past,
            },
            compute=ray.data.ActorPoolStrategy(
                min_size=min(reservation.min_workers, len(units)),
                max_size=most,
                # All are asked for at once, and work begins with the first that comes. A pool that grows by
                # itself asks for one machine more only when the last has come up.
                initial_size=most,
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,
            ),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=reservation.cpus,
            num_gpus=reservation.gpus or None,
        )
        for row in found.iter_rows():
            yield json.loads(row["summary"])


def _keep(state: StageState, failure: Mapping[str, Any]) -> None:
    """Write down a failure with its stack, for a person to read."""
    place = state.root / "_state" / state.stage / "failures" / f"{failure['unit_id']}.json"
    place.write_whole(json.dumps(failure, indent=2).encode())
