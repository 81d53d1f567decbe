"""What the search of a corpus costs beside reading it, and beside FAISS and NumPy, on made-up vectors.

Each contender runs in a process of its own, over the same files, one after the other, and has every core.
    ours        what the attribute stage does with its units, without Ray: read, rank, score for the whole
                query set, count scores, merge; nothing is written
    read        every byte of the files by NumPy, taken for float16 and converted to float32
    products    the bare matrix products of the same shapes, of vectors in memory: by NumPy, on a GPU by torch
    numpy       the vectors read as we read them; convert, multiply, argpartition, by NumPy; no scores of the
                query set, no counts
    faiss flat  the same by `faiss.knn`, the search of IndexFlatIP; its index itself would hold every vector
    copy        as many bytes as the files have, copied in memory

Keys of the JSON file:
    ratio_to_read                   our rate over that of `read`: 1 if the search took no longer than that
    ratio_to_faiss_flat             our rate over FAISS's; null where faiss is not installed
    ratio_to_numpy                  our rate over NumPy's
    ratio_to_copy                   our rate over that of a copy in memory
    seconds_over_read_and_products  our seconds over those of `read` and `products` together
    peak_memory_bytes               the most that our process held, interpreter and libraries with it; null
                                    where the kernel keeps no record
    equal_to_faiss_flat             share of FAISS's places that hold what ours do, or a score that float32
                                    cannot tell from ours; null without faiss
    equal_to_numpy                  the same of NumPy's
    contenders                      {contender, seconds, rows_per_second, peak_memory_bytes}, one for each
    device, device_name             where ours and `products` multiply; the others do so on the CPU
    bytes, cold, rows, dimensions, queries, top_k, rows_per_file, threads, versions
"""

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from benchmarks.measure import process_peak_bytes
from benchmarks.options import at_least, find_device, name_of_device
from benchmarks.table import show_search
from benchmarks.vectors import VectorsSpec, corpus_files, query_file
from influcoder_ray import __version__
from influcoder_ray.ahead import in_order
from influcoder_ray.attribution.topk import Ranking, merge_each
from influcoder_ray.stages.attribute import ROWS_PER_UNIT
from influcoder_ray.stages.work.search import SearchTables, SearchWork, query_rows, ranking_of
from influcoder_ray.tables.arrays import Stored, vector_matrix
from influcoder_ray.tables.datafiles import DataFile
from influcoder_ray.tables.rows import read_rows
from influcoder_ray.tables.units import Unit, plan_units
from influcoder_ray.tables.vectors import read_vectors

TITLE = "Search: our pass over a corpus's vectors beside reading them, FAISS flat, NumPy and a memory copy."

_BLOCK_ROWS = 4096
_READ_BYTES = 1 << 22
_COPIED_BYTES = 1 << 28
# Scores nearer to each other than this are equal to a float32 product of a few hundred terms.
_EQUAL = 2e-6
_TABLES = SearchTables("group", "rankings", "histogram")
_VERSIONS = ("torch", "numpy", "pyarrow", "faiss-cpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--rows", type=at_least(1), default=10_000_000, help="of the corpus (%(default)s)")
    parser.add_argument("--dimensions", type=at_least(1), default=384, help="of a vector (%(default)s)")
    parser.add_argument("--queries", type=at_least(1), default=100, help="(%(default)s)")
    parser.add_argument("--top-k", type=at_least(1), default=20, help="for each query (%(default)s)")
    parser.add_argument(
        "--rows-per-file",
        type=at_least(1),
        default=ROWS_PER_UNIT,
        help="rows that a unit of the embed stage leaves in its file (%(default)s)",
    )
    parser.add_argument(
        "--threads", type=at_least(1), default=os.cpu_count() or 1, help="of each contender (%(default)s)"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="cpu",
        help="that multiplies, for us and for the bare products (%(default)s)",
    )
    parser.add_argument(
        "--cold", action="store_true", help="drop the files from the page cache before each contender"
    )
    parser.add_argument("--work", metavar="FOLDER", help="where the vectors are kept; a temporary folder")
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print a table and write the figures."""
    with tempfile.TemporaryDirectory() as folder:
        figures = _figures(arguments, Path(arguments.work or folder))
    show_search(figures)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")


@dataclass(frozen=True)
class Task:
    """What every contender is given."""

    files: Sequence[DataFile]
    queries: DataFile
    rows: int
    dimensions: int
    asked: int
    top_k: int
    threads: int
    device: torch.device

    @property
    def units(self) -> list[Unit]:
        return plan_units(self.files, rows_per_unit=ROWS_PER_UNIT, fingerprint="benchmark")

    def query_vectors(self) -> npt.NDArray[np.float32]:
        """(Q, d), of length 1."""
        vectors = vector_matrix(query_rows([self.queries], ["example_id", "embedding"])).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def blocks(self) -> Iterator[tuple[npt.NDArray[np.object_], Stored]]:
        """Ids and vectors, a few thousand rows at a time."""
        for unit in self.units:
            ids, start = read_rows(unit, ["example_id"])["example_id"], 0
            for vectors in read_vectors(unit.piece.place, unit.piece.row_groups):
                yield ids[start : start + len(vectors)].to_numpy(), vectors
                start += len(vectors)


@dataclass(frozen=True)
class Best:
    """The best of each query: (Q, K) scores, falling, and ids."""

    scores: npt.NDArray[np.float32]
    ids: npt.NDArray[np.object_]


@dataclass(frozen=True)
class Result:
    """What a contender took, and found if it searches."""

    seconds: float
    peak_memory_bytes: int | None
    best: Best | None


def ours(task: Task) -> Callable[[], Best]:
    """The work of the attribute stage on each unit, and the merge of its rankings."""
    work = SearchWork([task.queries], _TABLES, task.top_k, 5.0, task.threads, task.device)

    def rankings() -> Iterator[Ranking]:
        # As an actor does, which reads one unit while it computes another.
        read_ahead = in_order(work.read, task.units, threads=1, ahead=2)
        for unit, rows in zip(task.units, read_ahead, strict=True):
            output = work.process(unit, rows, lambda done: None)
            yield ranking_of(output.tables[_TABLES.rankings], task.asked, output.rows_out, unit.unit_id)

    def search() -> Best:
        best = merge_each(rankings(), task.top_k)
        return Best(best.scores, best.ids)

    return search


def read(task: Task) -> Callable[[], None]:
    def work() -> None:
        for file in task.files:
            with Path(file.place.path).open("rb") as stream:
                while data := stream.read(_READ_BYTES):
                    np.frombuffer(data, np.float16, len(data) // 2).astype(np.float32)

    return work


def products(task: Task) -> Callable[[], None]:
    queries = task.query_vectors()
    block = np.resize(queries, (_BLOCK_ROWS, task.dimensions))
    scores = np.empty((len(queries), _BLOCK_ROWS), np.float32)
    if task.device.type == "cuda":
        return _products_on_gpu(task, queries, block)

    def work() -> None:
        for start in range(0, task.rows, _BLOCK_ROWS):
            some = block[: task.rows - start]
            np.matmul(queries, some.T, out=scores[:, : len(some)])

    return work


def _products_on_gpu(
    task: Task, queries: npt.NDArray[np.float32], block: npt.NDArray[np.float32]
) -> Callable[[], None]:
    there, some = (torch.from_numpy(vectors).to(task.device) for vectors in (queries, block))

    def work() -> None:
        for start in range(0, task.rows, _BLOCK_ROWS):
            torch.mm(there, some[: task.rows - start].T)
        torch.cuda.synchronize(task.device)

    return work


def by_numpy(task: Task) -> Callable[[], Best]:
    queries = task.query_vectors()

    def search(vectors: npt.NDArray[np.float32]) -> tuple[np.ndarray, np.ndarray]:
        scores = queries @ vectors.T
        kept = min(task.top_k, len(vectors))
        places = np.argpartition(scores, len(vectors) - kept, axis=1)[:, len(vectors) - kept :]
        return np.take_along_axis(scores, places, axis=1), places

    return lambda: _in_blocks(task, search)


def by_faiss(task: Task) -> Callable[[], Best]:
    import faiss

    faiss.omp_set_num_threads(task.threads)
    queries = task.query_vectors()

    def search(vectors: npt.NDArray[np.float32]) -> tuple[np.ndarray, np.ndarray]:
        found: tuple[np.ndarray, np.ndarray] = faiss.knn(
            queries, vectors, min(task.top_k, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT
        )
        return found

    return lambda: _in_blocks(task, search)


def copy(task: Task) -> Callable[[], None]:
    source, target = np.ones(_COPIED_BYTES, np.uint8), np.zeros(_COPIED_BYTES, np.uint8)

    def work() -> None:
        left = sum(file.place.size_bytes() for file in task.files)
        while left > 0:
            np.copyto(target[:left], source[:left])
            left -= _COPIED_BYTES

    return work


def _in_blocks(
    task: Task, search: Callable[[npt.NDArray[np.float32]], tuple[np.ndarray, np.ndarray]]
) -> Best:
    """The best of all blocks, each searched for (Q, K) scores and rows."""
    best: Best | None = None
    for ids, vectors in task.blocks():
        wide = vectors.astype(np.float32)
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
        scores, rows = search(wide)
        names = ids[rows]
        if best is not None:
            scores = np.concatenate([best.scores, scores], axis=1)
            names = np.concatenate([best.ids, names], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : task.top_k]
        best = Best(np.take_along_axis(scores, order, axis=1), np.take_along_axis(names, order, axis=1))
    assert best is not None
    return best


# Each makes ready what is no part of the search, and gives what is timed.
CONTENDERS: dict[str, Callable[[Task], Callable[[], Best | None]]] = {
    "ours": ours,
    "read": read,
    "products": products,
    "numpy": by_numpy,
    "faiss flat": by_faiss,
    "copy": copy,
}


def contend(name: str, task: Task) -> Result:
    """Run one contender; the whole life of its process."""
    torch.set_num_threads(task.threads)
    work = CONTENDERS[name](task)
    started = time.perf_counter()
    best = work()
    return Result(time.perf_counter() - started, process_peak_bytes(), best)


def share_equal(best: Best, other: Best) -> float:
    """Share of places at which two rankings hold the same id, or scores that float32 cannot tell apart."""
    return float(np.mean((best.ids == other.ids) | (np.abs(best.scores - other.scores) <= _EQUAL)))


def _figures(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything measured, by the keys of the JSON file."""
    log = Console(stderr=True)
    device = find_device(arguments.device)
    spec = VectorsSpec(arguments.rows, arguments.dimensions, arguments.queries, arguments.rows_per_file)
    log.print(f"{spec.rows:,} vectors below {folder}", highlight=False)
    task = Task(
        corpus_files(spec, folder),
        query_file(spec, folder),
        spec.rows,
        spec.dimensions,
        spec.queries,
        arguments.top_k,
        arguments.threads,
        device,
    )
    if not arguments.cold:
        # So that the first contender finds the files where the others do.
        read(task)()
    results: dict[str, Result] = {}
    for name in CONTENDERS:
        if name == "faiss flat" and find_spec("faiss") is None:
            log.print("faiss flat: left out, for faiss is not installed", highlight=False)
            continue
        if arguments.cold:
            _drop_from_cache(task.files)
        log.print(name, highlight=False)
        results[name] = _alone(name, task)
    mine = results["ours"]
    found = {name: r.best for name, r in results.items() if r.best is not None}

    def ratio_to(name: str) -> float | None:
        return results[name].seconds / mine.seconds if name in results else None

    def equal_to(name: str) -> float | None:
        return share_equal(found["ours"], found[name]) if name in found else None

    return {
        "ratio_to_read": ratio_to("read"),
        "ratio_to_faiss_flat": ratio_to("faiss flat"),
        "ratio_to_numpy": ratio_to("numpy"),
        "ratio_to_copy": ratio_to("copy"),
        "seconds_over_read_and_products": mine.seconds
        / (results["read"].seconds + results["products"].seconds),
        "peak_memory_bytes": mine.peak_memory_bytes,
        "equal_to_faiss_flat": equal_to("faiss flat"),
        "equal_to_numpy": equal_to("numpy"),
        "contenders": [
            {
                "contender": name,
                "seconds": result.seconds,
                "rows_per_second": spec.rows / result.seconds,
                "peak_memory_bytes": result.peak_memory_bytes,
            }
            for name, result in results.items()
        ],
        "device": device.type,
        "device_name": name_of_device(device),
        "bytes": sum(file.place.size_bytes() for file in task.files),
        "cold": arguments.cold,
        "rows": spec.rows,
        "dimensions": spec.dimensions,
        "queries": spec.queries,
        "top_k": arguments.top_k,
        "rows_per_file": spec.rows_per_file,
        "threads": arguments.threads,
        "versions": {"influcoder-ray": __version__, "python": platform.python_version()}
        | {name: held for name in _VERSIONS if (held := _version(name)) is not None},
    }


def _alone(name: str, task: Task) -> Result:
    """In a process of its own, whose peak memory is then the contender's."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(task.threads)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(contend, name, task).result()


def _drop_from_cache(files: Sequence[DataFile]) -> None:
    for file in files:
        with Path(file.place.path).open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
