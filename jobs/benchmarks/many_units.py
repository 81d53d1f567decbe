"""What very many units cost a driver: to plan them, to take up, close and read their record, to merge.

The units are as many as are asked for and the code is the stages' own. The corpus is one file under many
names, and no shard is ever written: they "lie" in a store that lists them as S3 does, in memory, and keeps
the record's few large files.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, ClassVar, TypeVar

import fsspec
import numpy as np
from fsspec.spec import AbstractFileSystem

from benchmarks.own_memory import Growth, watched
from benchmarks.own_process import told_by_process
from influcoder_ray.attribution.topk import Ranking, merge_each
from influcoder_ray.errors import RunFailed
from influcoder_ray.planning.requests import store_use
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import CommittedFile, Manifest, StageState
from influcoder_ray.tables.units import plan_units

# As many as `units_on_ray` notes down together.
_NOTED_TOGETHER = 4096
_SHARD_BYTES = 780_123
_MANIFEST_BYTES = 600
_TABLE = "embeddings"
_SHARDS, _MANIFESTS = f"out/{_TABLE}/", f"out/_state/{_TABLE}/units/"
_QUERIES, _TOP_K = 100, 20
_MERGED_UNITS = 4096

T = TypeVar("T")


def record_figures(corpus: str) -> dict[str, float | None]:
    """What the units of a corpus take of a process of its own, by the keys of the JSON file.

    Args:
        corpus: a folder, of which each row group is a unit.

    Raises:
        RunFailed: that process ended before it had anything to tell.
    """
    return told_by_process("the process of the record", _record, corpus)


def merge_figures(count: int) -> dict[str, float]:
    """How fast units' rankings are merged, and how many merges those of `count` units take."""
    generator = np.random.default_rng(0)
    rows = np.tile(np.arange(_TOP_K), (_QUERIES, 1))

    def ranking(number: int) -> Ranking:
        scores = -np.sort(-generator.random((_QUERIES, _TOP_K), np.float32), axis=1)
        ids = np.char.add(f"{number}-", rows.astype(str)).astype(object)
        return Ranking(scores, ids, np.full(ids.shape, f"{number}", object), rows, 100_000)

    rankings = [ranking(number) for number in range(min(count, _MERGED_UNITS))]
    started = time.perf_counter()
    merge_each(rankings, _TOP_K)
    seconds = time.perf_counter() - started
    return {"rankings_merged_per_second": len(rankings) / seconds}


def request_figures(
    count: int, *, price_of_1000_writes: float, price_of_1000_reads: float
) -> dict[str, float]:
    """Objects and requests of `count` units of `embed`, and of as many of `attribute`, and their price."""
    figures: dict[str, float] = {}
    for stage in ("embed", "attribute"):
        use = store_use(stage, count)
        assert use is not None
        figures |= {
            f"{stage}_objects": float(use.objects),
            f"{stage}_writes": float(use.requests.writes),
            f"{stage}_reads": float(use.requests.reads),
            f"{stage}_request_cost": use.requests.cost(price_of_1000_writes, price_of_1000_reads),
        }
    return figures


class MadeUpStore(AbstractFileSystem):
    """A store of one table's shards that lists as many as it was told, and keeps what is written to it.

    A listing holds for each shard what s3fs keeps of it. It is not cached: every look is a new listing.
    What is kept is the class's, for fsspec has an instance for each thread.
    """

    protocol = "madeup"
    files: ClassVar[dict[str, bytes]] = {}
    units: ClassVar[Sequence[str]] = ()

    def find(self, path: str, maxdepth: Any = None, withdirs: bool = False, **options: Any) -> dict[str, Any]:
        root = self._strip_protocol(path).rstrip("/") + "/"
        found = {
            name: {"name": name, "size": len(data), "type": "file"}
            for name, data in self.files.items()
            if name.startswith(root)
        }
        return found | {info["name"]: info for info in self._listed(root)}

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        name = self._strip_protocol(path)
        if name not in self.files:
            raise FileNotFoundError(path)
        return {"name": name, "size": len(self.files[name]), "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        name = self._strip_protocol(path)
        if name.startswith(_MANIFESTS):
            return manifest_of(name.removeprefix(_MANIFESTS).removesuffix(".json")).to_json()
        if name not in self.files:
            raise FileNotFoundError(path)
        return self.files[name][start:end]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        self.files[self._strip_protocol(path)] = value

    def rm(self, path: str, recursive: bool = False, maxdepth: Any = None) -> None:
        name = self._strip_protocol(path)
        for gone in [n for n in self.files if n == name or n.startswith(f"{name}/")]:
            del self.files[gone]

    def _listed(self, root: str) -> Iterator[dict[str, Any]]:
        """Shards in the table's folder, manifests in the stage's."""
        kinds = {_SHARDS: (".parquet", _SHARD_BYTES), _MANIFESTS: (".json", _MANIFEST_BYTES)}
        if root not in kinds:
            return
        end, size = kinds[root]
        for unit_id in self.units:
            name = f"{root}{unit_id}{end}"
            # Each of them a value of its own, as out of an answer that was just parsed.
            yield {
                "Key": name,
                "LastModified": datetime.fromtimestamp(1e9, UTC),
                "ETag": f'"{unit_id}{unit_id}"',
                "ChecksumAlgorithm": ["CRC32"],
                "ChecksumType": "FULL_OBJECT",
                "Size": int(str(size)),
                "StorageClass": "STANDARD",
                "type": "file",
                "size": int(str(size)),
                "name": name,
            }


def made_up_state(units: Sequence[str]) -> StageState:
    """The record of a stage that has left a shard of each unit in a made-up store."""
    fsspec.register_implementation(MadeUpStore.protocol, MadeUpStore, clobber=True)
    root = Place(f"{MadeUpStore.protocol}://out")
    MadeUpStore.files.clear()
    MadeUpStore.units = units
    state = StageState(root, _TABLE, (_TABLE,))
    state.begin(Fingerprint({"stage": _TABLE}))
    return state


def manifest_of(unit_id: str) -> Manifest:
    """A unit's, as `embed` leaves one."""
    number = int(unit_id[:8], 16)
    file = CommittedFile(_TABLE, f"{_TABLE}/{unit_id}.parquet", 1000, _SHARD_BYTES, unit_id * 4, 4096)
    counters = {"tokens": 512_000.0 + number % 1000, f"truncated_{_TABLE}": float(number % 9)}
    return Manifest(unit_id, 1000, 1000, 0, number / 1e9, (file,), counters)


def _record(pipe: Connection, corpus: str) -> None:
    """Plan units, note them down, take them up, close the stage and read it: the whole life of a process."""
    listing, to_list, listed = _timed(lambda: find_data_files(corpus, setting="--corpus"))
    planned, to_plan, plan = _timed(lambda: plan_units(listing, rows_per_unit=1, fingerprint="many"))
    units = [unit.unit_id for unit in planned]
    count = len(units)
    state = made_up_state(units)
    for first in range(0, count, _NOTED_TOGETHER):
        state.note([manifest_of(unit_id) for unit_id in units[first : first + _NOTED_TOGETHER]])
    wanted = set(units)

    def per_unit(growth: int | None) -> float | None:
        return None if growth is None else growth / count

    found, taking_up, growth = _timed(lambda: state.take_up(wanted))
    if len(found) != len(wanted):
        raise RunFailed(f"{len(found)} of {len(wanted)} units were found again")
    _, closing, _ = _timed(partial(state.finish, found, {}))
    del found
    files, reading, _ = _timed(lambda: state.files(_TABLE))
    if len(files) != len(wanted):
        raise RunFailed(f"{len(files)} of {len(wanted)} files were found again")
    pipe.send(
        {
            "listed_files": len(listing),
            "listed_rows": sum(sum(file.row_groups or ()) for file in listing),
            "seconds_to_list": to_list,
            "bytes_per_listed_file": None if listed.held is None else listed.held / len(listing),
            "listed_units": count,
            "seconds_to_plan_listed": to_plan,
            "bytes_per_listed_unit": per_unit(plan.held),
            "seconds_to_take_up": taking_up,
            "bytes_per_unit_to_take_up": per_unit(growth.most),
            "bytes_per_unit_taken_up": per_unit(growth.held),
            "seconds_to_close": closing,
            "seconds_to_read_closed": reading,
        }
    )


def _timed(work: Callable[[], T]) -> tuple[T, float, Growth]:
    started = time.perf_counter()
    found, growth = watched(work)
    return found, time.perf_counter() - started, growth
