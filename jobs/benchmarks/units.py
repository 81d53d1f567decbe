"""What running units costs beside their work: work that only sleeps, so that no core is what it waits for.

Keys of the JSON file:
    share_of_ideal                  throughput while every actor was up, over actors / sleep
    share_of_ideal_with_start_up    the same from the call to its return: actors start, the record is read
    units_per_second, ideal_units_per_second, wall_seconds, start_up_seconds
                                    start-up: from the call until the last actor took its first unit
    two_workers_over_one            throughput of two actors over that of one, both while all were up
    two_workers_over_one_with_start_up
    seconds_to_plan                 to cut `planned_units` units
    seconds_to_first_planned_unit   from handing them over until one of them was done
    driver_bytes_per_planned_unit   the most that the driver grew by, from before it planned those units until
                                    it had done some of them for `memory_seconds`, for each of them; null
                                    where the kernel keeps no record
    driver_bytes_per_unit_of_plan   of these, what the plan itself takes
    driver_units_per_second         units of that plan, whose work is nothing, that were handed out, committed
                                    and heard of in those seconds: no run is faster, however many workers
    listed_files, listed_rows, listed_units
                                    of a corpus of so many units, one file under many names
    seconds_to_list, bytes_per_listed_file
                                    to find its files, read their footers and identify them
    seconds_to_plan_listed, bytes_per_listed_unit
                                    to cut them into units
    seconds_to_take_up              of a run that goes on: to find out which of `planned_units` are done
    bytes_per_unit_to_take_up       the most that its driver grew by meanwhile; bytes_per_unit_taken_up: what
                                    it then holds of each
    seconds_to_close                to record that all are done; seconds_to_read_closed: for a later stage to
                                    read that. All four are of a store that answers at once
    rankings_merged_per_second      of units' best 20 for 100 queries
    embed_objects, embed_writes, embed_reads, embed_request_cost, attribute_...
                                    objects that `planned_units` leave on S3, requests, and their price
    units, sleep_seconds, actors, scaling_units, planned_units, memory_seconds, prices, versions
"""

import argparse
import gc
import json
import math
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from benchmarks.linked_corpus import linked_corpus
from benchmarks.many_units import merge_figures, record_figures, request_figures
from benchmarks.own_memory import own_bytes
from benchmarks.own_process import told_by_process
from benchmarks.table import show_units
from influcoder_ray import __version__
from influcoder_ray.config import WorkersSpec
from influcoder_ray.errors import RunFailed, Stopped
from influcoder_ray.stages.display import Display
from influcoder_ray.stopping import stoppable
from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, Output, StageState
from influcoder_ray.tables.units import Unit, plan_units

TITLE = "Units: share of the ideal throughput, scaling and driver memory, on work that only sleeps."

_GROUPS_PER_FILE = 100
# They sleep: what an actor takes of a core is next to nothing, and eight of them fit on any machine.
_CPUS = 0.01
_WATCH_SECONDS = 0.2
_VERSIONS = ("ray", "pyarrow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--units", type=int, default=1000, help="units that sleep (%(default)s)")
    parser.add_argument("--sleep-seconds", type=float, default=0.5, help="how long each (%(default)s)")
    parser.add_argument("--actors", type=int, default=8, help="actors that share them (%(default)s)")
    parser.add_argument(
        "--scaling-units", type=int, default=60, help="units for one actor, and then for two (%(default)s)"
    )
    parser.add_argument(
        "--planned-units",
        type=int,
        default=100_000,
        help="units of a large plan, for the driver's memory (%(default)s)",
    )
    parser.add_argument(
        "--memory-seconds",
        type=float,
        default=30.0,
        help="how long to run the large plan once its first unit is done; they do not sleep (%(default)s)",
    )
    parser.add_argument(
        "--corpus",
        metavar="FOLDER",
        help="where to leave the corpus of that plan, for influcoder-ray plan: one file under many names",
    )
    parser.add_argument("--rows-per-unit", type=int, default=1000, help="of that corpus (%(default)s)")
    parser.add_argument("--words", type=int, default=400, help="of a text of that corpus (%(default)s)")
    parser.add_argument(
        "--prices",
        type=float,
        nargs=2,
        metavar=("WRITES", "READS"),
        default=[0.005, 0.0004],
        help="of 1,000 PUT, POST or LIST requests, and of 1,000 GET or HEAD (0.005 0.0004: dollars, "
        "S3 Standard in us-east-1, https://aws.amazon.com/s3/pricing/)",
    )
    parser.add_argument(
        "--only-plan", action="store_true", help="only what concerns the large plan; no unit sleeps"
    )
    parser.add_argument("--output", metavar="FOLDER", help="where units are committed; a temporary folder")
    parser.add_argument("--address", help="Ray cluster to join; else Ray starts here")
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print a table and write the figures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Place(arguments.output or folder)
        figures = _figures(arguments, root)
    show_units(figures)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")


class SleepingWork:
    """Work on a unit that takes its time and nothing else; says when, and which actor did it."""

    def __init__(self, seconds: float) -> None:
        import ray

        self._seconds = seconds
        # A counter is a number: 48 bits of the actor's id fit into one.
        self._actor = int(ray.get_runtime_context().get_actor_id()[:12], 16)

    def read(self, unit: Unit) -> None:
        """Nothing is read."""

    def process(self, unit: Unit, rows: None, report: Callable[[int], None]) -> Output:
        began = time.time()
        time.sleep(self._seconds)
        counters = {"began_at": began, "ended_at": time.time(), "actor": self._actor}
        return Output({"rows": pa.table({"unit": [unit.unit_id]})}, 1, 1, counters=counters)


@dataclass(frozen=True)
class Throughput:
    """How fast units were done, `seconds` being from the call to its return."""

    actors: int
    units: int
    seconds: float
    start_up_seconds: float
    units_per_second: float


def throughput(manifests: Iterable[Manifest], actors: int, called_at: float, seconds: float) -> Throughput:
    """What manifests of sleeping work say about the time in which every actor was up.

    That is from when the last actor took its first unit until the last unit ended.

    Args:
        called_at: when the units were handed over, as `time.time()` tells it, like the manifests' counters.

    Raises:
        RunFailed: fewer actors than that did a unit, or all units had ended when the last one took its first.
    """
    counters = [manifest.counters for manifest in manifests]
    first: dict[float, float] = {}
    for unit in counters:
        first[unit["actor"]] = min(unit["began_at"], first.get(unit["actor"], math.inf))
    if len(first) < actors:
        raise RunFailed(f"{len(first)} of {actors} actors did a unit; give more units, or a machine alone")
    all_up, last = max(first.values()), max(unit["ended_at"] for unit in counters)
    done = sum(1 for unit in counters if unit["ended_at"] > all_up)
    # What was half done when the last actor came counts by half, for units end as often as they begin.
    done -= sum(1 for unit in counters if unit["began_at"] < all_up < unit["ended_at"]) // 2
    if done <= 0:
        raise RunFailed("all units had ended before the last actor was up; give more units")
    return Throughput(actors, len(counters), seconds, all_up - called_at, done / (last - all_up))


def _figures(arguments: argparse.Namespace, root: Place) -> dict[str, Any]:
    """Everything measured, by the keys of the JSON file."""
    log = Console(stderr=True)
    log.print(f"planning {arguments.planned_units:,} units, and running them a while", highlight=False)
    figures: dict[str, Any] = dict(_memory(arguments, root))
    log.print("its record, without its shards", highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(arguments.corpus or folder)
        linked_corpus(corpus, arguments.planned_units, arguments.rows_per_unit, arguments.words)
        figures |= record_figures(str(corpus))
    figures |= merge_figures(arguments.planned_units)
    writes, reads = arguments.prices
    figures |= request_figures(
        arguments.planned_units, price_of_1000_writes=writes, price_of_1000_reads=reads
    )
    figures |= {
        "planned_units": arguments.planned_units,
        "memory_seconds": arguments.memory_seconds,
        "prices": arguments.prices,
        "versions": {"influcoder-ray": __version__, "python": platform.python_version()}
        | {name: version(name) for name in _VERSIONS},
    }
    return figures if arguments.only_plan else _throughput_figures(arguments, root, log) | figures


def _throughput_figures(arguments: argparse.Namespace, root: Place, log: Console) -> dict[str, Any]:
    """What units that sleep tell."""
    sleep = arguments.sleep_seconds
    found = {}
    for actors, units in ((1, arguments.scaling_units), (2, arguments.scaling_units)):
        log.print(f"{units:,} units on {actors} of 2 workers", highlight=False)
        found[actors] = _timed(root / f"scaling-{actors}", units, actors, sleep, arguments.address)
    log.print(f"{arguments.units:,} units on {arguments.actors} actors", highlight=False)
    whole = _timed(root / "whole", arguments.units, arguments.actors, sleep, arguments.address)
    ideal = arguments.actors / sleep
    return {
        "share_of_ideal": whole.units_per_second / ideal,
        "share_of_ideal_with_start_up": whole.units / whole.seconds / ideal,
        "units_per_second": whole.units_per_second,
        "ideal_units_per_second": ideal,
        "wall_seconds": whole.seconds,
        "start_up_seconds": whole.start_up_seconds,
        "two_workers_over_one": found[2].units_per_second / found[1].units_per_second,
        "two_workers_over_one_with_start_up": found[1].seconds / found[2].seconds,
        "units": arguments.units,
        "sleep_seconds": sleep,
        "actors": arguments.actors,
        "scaling_units": arguments.scaling_units,
    }


def _timed(root: Place, units: int, actors: int, sleep: float, address: str | None) -> Throughput:
    from influcoder_ray.stages.cluster import connect

    connect(address)
    planned = plan_of(root, units)
    called_at, started = time.time(), time.monotonic()
    manifests = _do(root, planned, actors, sleep)
    return throughput(manifests.values(), actors, called_at, time.monotonic() - started)


def plan_of(root: Place, count: int) -> list[Unit]:
    """A plan of `count` units, each a row group of a made-up file."""
    files = [
        DataFile(
            root / f"{number}.parquet",
            f"{number}.parquet",
            f"{number}",
            (1,) * min(_GROUPS_PER_FILE, count - first),
            ("unit",),
        )
        for number, first in enumerate(range(0, count, _GROUPS_PER_FILE))
    ]
    return plan_units(files, rows_per_unit=1, fingerprint="sleeping", table="rows")


def _do(root: Place, units: Sequence[Unit], actors: int, sleep: float) -> dict[str, Manifest]:
    from influcoder_ray.stages.cluster import Reservation
    from influcoder_ray.stages.units_on_ray import WorkPlan, run_units

    plan = WorkPlan(StageState(root, "units", ("rows",)), units, SleepingWork, {"seconds": sleep})
    reservation = Reservation(actors, actors, _CPUS, 0.0, WorkersSpec().hung_after_seconds)
    return run_units(
        plan, Fingerprint({"stage": "units"}), reservation, Display(Console(stderr=True)), "units"
    )


def _memory(arguments: argparse.Namespace, root: Place) -> dict[str, float | None]:
    """What a large plan costs a driver of its own, which is ended once it has run long enough.

    Raises:
        RunFailed: that driver ended before it had anything to tell.
    """
    return told_by_process(
        "the driver of the large plan",
        _large_plan,
        (root / "planned").uri,
        arguments.planned_units,
        arguments.memory_seconds,
        arguments.actors,
        arguments.address,
    )


def _large_plan(
    pipe: Connection, root: str, count: int, seconds: float, actors: int, address: str | None
) -> None:
    """Plan units, run them for a while, tell what that took: the whole life of a driver."""
    from influcoder_ray.stages.cluster import connect

    connect(address)
    # What Ray and Ray Data take once, whatever the plan, is not the plan's.
    _do(Place(root) / "first", plan_of(Place(root), actors), actors, 0.0)
    gc.collect()
    before = own_bytes()
    started = time.monotonic()
    units = plan_of(Place(root), count)
    to_plan = time.monotonic() - started
    planned = own_bytes()
    told = threading.Event()
    record = Place(root) / "large/_state/units/units"

    def per_unit(held: int | None) -> float | None:
        return None if held is None or before is None else (held - before) / count

    def watch() -> None:
        most, handed_over = planned or 0, time.monotonic()
        first: float | None = None
        while (first is None or time.monotonic() < first + seconds) and not told.wait(_WATCH_SECONDS):
            most = max(most, own_bytes() or 0)
            if first is None and record.files():
                first = time.monotonic()
        done, lasted = len(record.files()), time.monotonic() - (first or handed_over)
        pipe.send(
            {
                "driver_units_per_second": done / lasted,
                "seconds_to_plan": to_plan,
                "seconds_to_first_planned_unit": None if first is None else first - handed_over,
                "driver_bytes_per_planned_unit": per_unit(most),
                "driver_bytes_per_unit_of_plan": per_unit(planned),
            }
        )
        if not told.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=watch)
    try:
        with stoppable():
            watcher.start()
            _do(Place(root) / "large", units, actors, 0.0)
    except Stopped:
        # By its own watch: what is left of the plan would tell nothing more.
        return
    finally:
        told.set()
        watcher.join()
