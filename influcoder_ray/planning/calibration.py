"""Speeds of this machine: some batches through the very code of the stages, for about a minute."""

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from influcoder_ray.attribution.scan import Scan
from influcoder_ray.config import PipelineSettings, WorkersSpec
from influcoder_ray.encoder.flops import forward_flops
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.recipes import training
from influcoder_ray.encoder.training import Examples
from influcoder_ray.encoder.workers import Workers
from influcoder_ray.examples import Example
from influcoder_ray.gradients.flops import forward_backward_flops
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.teacher import Teacher
from influcoder_ray.planning.counts import TRAINING, search_flops
from influcoder_ray.planning.data import Part, Survey
from influcoder_ray.planning.speed import Speeds
from influcoder_ray.planning.work import Kind
from influcoder_ray.stages.folders import at_hand
from influcoder_ray.stages.work.scan import ScanWork
from influcoder_ray.tables.units import Piece, Unit

# How the time is spent: the teacher's batches are the longest.
_TEACHER_SHARE, _FORWARD_SHARE, _TRAINING_SHARE, _CPU_SHARE = 0.5, 0.2, 0.2, 0.05
# Batches of one call: enough that rows of like length meet, as they do in a unit.
_BATCHES = 4
# Of texts that are embedded together: what is set up for a unit must not weigh more than it does there.
_LEAST_TOKENS = 8192
_SEARCHED_ROWS, _MOST_QUERIES = 16_384, 512
# Steps of a made-up epoch of training.
_STEPS = 4

# Workers of a stage that start one after the other: those of its pools, of its training, of single steps. Ray
# Train takes about two more for itself: its controller, the group of workers, their end.
_STARTS = {"sample": 2, "sketch": 1, "explore": 3, "distill": 5}
_STARTS |= {"embed": 1, "attribute": 1, "rerank": 2, "evaluate": 1, "validate": 2, "mark": 2}
# What a worker imports before it does anything.
_IMPORTS = "import ray.data, ray.train.torch, torch, transformers, influcoder_ray.stages.units_on_ray"

T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """Amounts of work and the seconds that they took."""

    amount: float
    seconds: float
    tokens: int = 0

    @property
    def per_second(self) -> float:
        return self.amount / self.seconds


def calibrate(
    settings: PipelineSettings, corpus: Survey, *, queries: int, dimensions: int, seconds: float
) -> Speeds:
    """What this machine does in a second: scanning, gradients, the encoder's passes, training, the search.

    Loads both models, one after the other, on the GPU if there is one.

    Args:
        corpus: the rows that are worked on.
        queries, dimensions: of the search.
        seconds: how long to work, about; each kind of work is done at least once, loading not counted.

    Raises:
        UserError: a model cannot be loaded.
    """
    return _as_in_a_worker(lambda: _calibrate(settings, corpus, queries, dimensions, seconds))


def _calibrate(
    settings: PipelineSettings, corpus: Survey, queries: int, dimensions: int, seconds: float
) -> Speeds:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bare = calibrate_cpu(settings, corpus, queries=queries, dimensions=dimensions, seconds=seconds)
    with _threads(settings.workers.sketch):
        gradients, teacher_start = _gradients(settings, corpus.examples, device, _TEACHER_SHARE * seconds)
    with _threads(settings.workers.embed):
        encoder, encoder_start = _started(lambda: Encoder.load(at_hand(settings.encoder), device))
        forward = _forward(settings, encoder, corpus.examples, _FORWARD_SHARE * seconds)
    with _threads(settings.workers.distill):
        steps, fits = _training(settings, encoder, corpus.examples, _TRAINING_SHARE * seconds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine's CPU"
    loaded = {"sketch": teacher_start, "explore": teacher_start + encoder_start, "rerank": teacher_start}
    loaded |= {"distill": encoder_start + fits, "embed": encoder_start, "mark": teacher_start}
    loaded |= dict.fromkeys(("evaluate", "validate"), teacher_start + encoder_start)
    measured: dict[Kind, Measured] = {"gradients": gradients, "encoder": forward, "training": steps}
    return replace(
        bare,
        per_second={**bare.per_second, **{kind: one.per_second for kind, one in measured.items()}},
        start_seconds={stage: s + loaded.get(stage, 0.0) for stage, s in bare.start_seconds.items()},
        rests_on=(
            *(f"{kind}: {m.tokens:,} tokens in {m.seconds:.1f} s on {name}" for kind, m in measured.items()),
            *bare.rests_on,
            f"fits in closed form: {fits:.1f} s in all epochs, as for a few examples",
            "models are loaded once by each worker",
        ),
    )


def calibrate_cpu(
    settings: PipelineSettings, corpus: Survey, *, queries: int, dimensions: int, seconds: float
) -> Speeds:
    """What a CPU of this machine does in a second, scanning and searching; loads no model.

    Args:
        queries, dimensions, seconds: as for `calibrate`, of which this is a part.
    """
    with _threads(settings.workers.sample):
        scan = _scan(settings, corpus.parts, _CPU_SHARE * seconds)
    with _threads(settings.workers.attribute):
        search = _search(queries, dimensions, settings.kept_per_query, _CPU_SHARE * seconds)
    start = worker_start_seconds()
    return Speeds(
        per_second={"scan": scan.per_second, "search": search.per_second},
        start_seconds={stage: starts * start for stage, starts in _STARTS.items()},
        rests_on=(
            f"scan: {scan.amount:,.0f} rows in {scan.seconds:.1f} s on this machine's CPU",
            f"search: {_SEARCHED_ROWS:,} made-up vectors for {min(queries, _MOST_QUERIES):,} queries at a "
            f"time, {search.seconds:.1f} s on this machine's CPU",
            f"a worker's start: {start:.1f} s, in which a process of this machine imports what a worker does",
        ),
    )


def worker_start_seconds() -> float:
    """What a worker's process takes until it has imported what it needs, on a machine that is up."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True, capture_output=True)
    return time.perf_counter() - started


def _gradients(
    settings: PipelineSettings, examples: Sequence[Example], device: torch.device, seconds: float
) -> tuple[Measured, float]:
    """FLOPs of gradients and sketches, and the seconds until the teacher was there."""
    teacher, start_seconds = _started(
        lambda: Teacher.load(
            at_hand(settings.model), at_hand(settings.adapter), seed=settings.seed, device=device
        )
    )
    sketch = CountSketch(settings.sketch.width, settings.seed)
    usable = [e for e, t in zip(examples, teacher.tokens(examples), strict=True) if t.labelled > 0]

    def work(some: Sequence[Example]) -> tuple[float, int]:
        tokens = teacher.tokens(some)
        teacher.sketch(tokens, sketch, direction=teacher.pool_direction)
        lengths = [len(t.ids) for t in tokens]
        return forward_backward_flops(teacher.model, lengths, [t.labelled for t in tokens]), sum(lengths)

    budget = _BATCHES * (teacher.spec.tokens_per_batch or 0)
    lengths = [len(t.ids) for t in teacher.tokens(usable)]
    chunks = _chunks(lengths, budget, settings.sketch.rows_per_unit)
    return _timed(work, [[usable[row] for row in rows] for rows in chunks], seconds), start_seconds


def _forward(
    settings: PipelineSettings, encoder: Encoder, examples: Sequence[Example], seconds: float
) -> Measured:
    """FLOPs of the encoder's forward pass."""

    def work(some: Sequence[Example]) -> tuple[float, int]:
        *_, tokens = encoder.embed_with_traits(some, "pool", lambda traits: traits[:, :1])
        return forward_flops(encoder.model, tokens), sum(tokens)

    lengths = [len(window) for window in encoder.windows(examples)[0]]
    budget = max(_LEAST_TOKENS, _BATCHES * encoder.tokens_per_batch)
    chunks = _chunks(lengths, budget, settings.embed.rows_per_unit)
    return _timed(work, [[examples[row] for row in rows] for rows in chunks], seconds)


def _training(
    settings: PipelineSettings, encoder: Encoder, examples: Sequence[Example], seconds: float
) -> tuple[Measured, float]:
    """FLOPs of training steps, and the seconds of what all epochs do beside; sketches are made up."""
    spec = settings.distill
    windows, _ = encoder.windows(examples)
    generator = np.random.default_rng(0)

    def side(rows: int) -> Examples:
        sketches = generator.standard_normal((rows, settings.sketch.width), dtype=np.float32)
        return Examples([windows[row % len(windows)] for row in range(rows)], sketches, rows)

    queries, pool = side(_STEPS * spec.queries_per_step), side(_STEPS * spec.candidates_per_step)
    trained = training(encoder, queries, pool, spec, seed=settings.seed, workers=Workers())
    tokens = [len(window) for window in (*queries.windows, *pool.windows)]
    share = trained.steps_per_epoch * (spec.queries_per_step + spec.candidates_per_step) / len(tokens)

    def epoch() -> tuple[float, float]:
        """The seconds of its steps, and of what comes after them."""
        ended = started = time.perf_counter()

        def step_is_done(step: int, loss: float) -> None:
            nonlocal ended
            ended = time.perf_counter()

        trained.train_epoch(step_is_done)
        return ended - started, time.perf_counter() - ended

    # Steps of the first epoch, if it takes any, are not counted: it allocates and fills caches.
    _, fits = epoch()
    took, epochs, after = 0.0, 0, 0.0
    while took < seconds:
        stepping, fitting = epoch()
        took, epochs, after = took + stepping, epochs + 1, after + fitting
    flops = TRAINING * forward_flops(encoder.model, tokens)
    measured = Measured(epochs * share * flops, took, round(epochs * share * sum(tokens)))
    return measured, fits + (spec.epochs - 1) * after / epochs


def _scan(settings: PipelineSettings, parts: Sequence[Part], seconds: float) -> Measured:
    """Rows that are made examples of, hashed and drawn from."""
    share = min(1.0, settings.sample.pool / settings.sample.rows_per_unit)
    rows_of_part = max(len(part.cells) for part in parts)
    kept = math.ceil(share * rows_of_part)
    work = ScanWork(settings.corpus.columns, kept, settings.seed, (), "sample")

    def scan(some: Part) -> tuple[float, int]:
        piece = Piece(some.file.place, some.file.relative, None, 0, None)
        return work.process(Unit("", (piece,), "pool"), [(piece, some.cells)], lambda rows: None).rows_in, 0

    return _timed(scan, parts, seconds)


def _search(queries: int, dimensions: int, top_k: int, seconds: float) -> Measured:
    """FLOPs of a search over made-up vectors, with all that the stage does beside."""
    generator = np.random.default_rng(0)
    queries = min(queries, _MOST_QUERIES)
    asked, held = (
        generator.standard_normal((rows, dimensions)).astype(np.float16) for rows in (queries, _SEARCHED_ROWS)
    )
    ids = np.array([f"{row}" for row in range(_SEARCHED_ROWS)], dtype=object)

    scan = Scan(asked, top_k)

    def search(vectors: np.ndarray) -> tuple[float, int]:
        scan.shard([vectors], lambda rows: ids[rows])
        return search_flops(queries, len(vectors), dimensions), 0

    return _timed(search, [held], seconds)


def _timed(work: Callable[[T], tuple[float, int]], pieces: Sequence[T], seconds: float) -> Measured:
    """Do one piece of work after the other, again and again, until the time is up."""
    # The first call of all allocates, compiles and fills caches: it is not counted.
    work(pieces[0])
    amount, tokens, piece = 0.0, 0, 0
    started = time.perf_counter()
    while True:
        done, seen = work(pieces[piece % len(pieces)])
        amount, tokens, piece = amount + done, tokens + seen, piece + 1
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            return Measured(amount, elapsed, tokens)


def _started(load: Callable[[], T]) -> tuple[T, float]:
    """What is loaded, and the seconds that it took."""
    started = time.perf_counter()
    return load(), time.perf_counter() - started


def _as_in_a_worker(measure: Callable[[], T]) -> T:
    """What is measured on a thread of its own, as workers compute.

    Off the main one the C library gives large pieces of memory back at once, and fetches them anew: on two
    cores gradients ran at 122 tokens/s, and at 140 to 166 on the main thread.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(measure).result()


def _chunks(lengths: Sequence[int], most_tokens: int, most_rows: int) -> list[list[int]]:
    """Rows in their order, cut where either limit is reached; one row at least in each chunk."""
    chunks: list[list[int]] = []
    tokens = 0
    for row, length in enumerate(lengths):
        if chunks and tokens + length <= most_tokens and len(chunks[-1]) < most_rows:
            chunks[-1].append(row)
            tokens += length
        else:
            chunks.append([row])
            tokens = length
    return chunks


@contextmanager
def _threads(spec: WorkersSpec) -> Iterator[None]:
    """While it lasts, arithmetic has the threads that a worker has; all, where that is left open."""
    before = torch.get_num_threads()
    if spec.cpus:
        torch.set_num_threads(max(1, int(spec.cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
