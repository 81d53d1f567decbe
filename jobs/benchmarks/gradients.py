"""Per-example gradients beside the plain backward pass and the usual ways, on the same rows and model.

Parts, each over all rows unless said otherwise:
    plain            forward and backward of the same batches; no adapter, nothing captured
    ours             every example's adapter gradient, sketched
    ours, unsketched the same with gradients dropped where they would be sketched (--sketch-share)
    one at a time    PEFT and autograd, one example a step, on every k-th row
    bergson          Bergson's build, where its command is installed and the weights are in a folder
Rows are cut into slices, and each slice goes through all parts in turn before the next one, so that a noisy
machine disturbs all alike; a part's figure is the sum of its fastest passes over each slice, and plain and
ours each have the token budget that suits them best. Tokens are real ones:
padding counts for nothing.
"""

import argparse
import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.bergson import Bergson, run_bergson
from benchmarks.material import random_teacher, random_tokens, read_tokens
from benchmarks.one_at_a_time import one_at_a_time
from benchmarks.options import at_least, find_device, name_of_device
from benchmarks.parts import Part, UnusedSketch, Work, teacher_part
from benchmarks.table import show_gradients
from influcoder_ray import __version__
from influcoder_ray.errors import RunFailed, UserError
from influcoder_ray.examples import ColumnSpec
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.flops import forward_backward_flops
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec, SketchSpec
from influcoder_ray.gradients.teacher import Teacher
from influcoder_ray.planning.cards import peak_flops_per_second

TITLE = "Per-example gradients: tokens per second beside the plain backward pass and one example at a time."

# Above these relative errors the thing timed is not the gradient; low precision rounds at every layer.
_MOST_ERROR = {"float32": 1e-3, "tf32": 0.1, "bfloat16": 0.2}
_LEAST_TOKENS = 32
_VERSIONS = ("torch", "transformers", "peft")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="FOLDER", help="causal LM in Hugging Face layout; needs --rows")
    model.add_argument(
        "--random-weights",
        metavar="CONFIG",
        help="a config.json, or a folder with one (Qwen3-4B's, say): seeded random weights of that shape, "
        "made on the device, and --count rows of random tokens",
    )
    parser.add_argument("--rows", metavar="FILE", help="Parquet or JSON Lines with the rows")
    parser.add_argument("--prompt", nargs="+", metavar="COLUMN", help="column, or columns, of the prompt")
    parser.add_argument("--response", metavar="COLUMN", help="column of the response")
    parser.add_argument("--text", metavar="COLUMN", help="column of raw text, in place of a pair")
    parser.add_argument("--count", type=at_least(2), default=200, help="rows (%(default)s)")
    parser.add_argument(
        "--min-tokens",
        type=at_least(2),
        help=f"shorter rows are skipped ({_LEAST_TOKENS}); random rows have between so many and "
        "--max-tokens, and all of these if it is not given",
    )
    parser.add_argument(
        "--max-tokens", type=at_least(8), default=256, help="longer rows are cut (%(default)s)"
    )
    parser.add_argument("--rank", type=at_least(1), default=8, help="rank of the adapter (%(default)s)")
    parser.add_argument("--width", type=int, default=16_384, help="width of the CountSketch (%(default)s)")
    parser.add_argument("--dtype", choices=tuple(_MOST_ERROR), default="float32", help="%(default)s")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="%(default)s")
    parser.add_argument("--threads", type=at_least(1), help="torch's threads on a CPU; its choice if unset")
    parser.add_argument(
        "--tokens-per-batch",
        type=at_least(8),
        nargs="+",
        default=[512, 1024, 2048],
        metavar="TOKENS",
        help="token budgets to try (512 1024 2048)",
    )
    parser.add_argument(
        "--layout",
        choices=("auto", "padded"),
        default="auto",
        help="padded gives each row of plain and ours a row of its own; auto packs them where it can",
    )
    parser.add_argument(
        "--slices",
        type=at_least(1),
        help="slices into which the rows are cut; 8 on a CPU and 1 on a GPU, which wants large batches",
    )
    parser.add_argument("--repeats", type=at_least(1), default=3, help="rounds (%(default)s)")
    parser.add_argument(
        "--one-at-a-time-count",
        type=at_least(1),
        default=24,
        metavar="COUNT",
        help="rows for one example at a time (%(default)s)",
    )
    parser.add_argument(
        "--sketch-share",
        action="store_true",
        help="time the gradients without their sketch as well; takes half as long again",
    )
    parser.add_argument("--skip-bergson", action="store_true", help="leave Bergson out where it is installed")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print a table and write the figures.

    Raises:
        UserError: a setting or an input that cannot be used.
        RunFailed: the gradients are not autograd's, so that their speed would mean nothing.
    """
    device = find_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if arguments.dtype == "tf32" else "highest")
    try:
        figures = _figures(arguments, device)
    finally:
        torch.set_float32_matmul_precision(precision)
    show_gradients(figures)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")


def _figures(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Everything measured, by the keys of the JSON file."""
    log = Console(stderr=True)
    adapter = AdapterSpec(rank=arguments.rank)
    width = _width(arguments.width)
    teacher, tokens = _material(arguments, adapter, device)
    model = teacher.model

    def alone() -> AbstractContextManager[Any]:
        return one_at_a_time(model, teacher.weights, adapter, width=width, seed=arguments.seed)

    with alone() as reference:
        log.print(f"comparing 2 of {len(tokens)} rows with autograd", highlight=False)
        pair = [min(tokens, key=lambda t: len(t.ids)), max(tokens, key=lambda t: len(t.ids))]
        expected = reference.gradients_of_b(pair).cpu().numpy()
    error, cosine = _agreement(teacher.gradients(pair), expected)
    if not error <= _MOST_ERROR[arguments.dtype]:
        raise RunFailed(
            f"gradients differ from autograd's by {error:.2g} of their length, which is more than "
            f"{arguments.dtype} explains ({_MOST_ERROR[arguments.dtype]:g}); nothing was timed"
        )

    @contextmanager
    def sketching_alone() -> Iterator[Work]:
        with alone() as way:
            yield way.sketches

    few = tokens[:: max(1, len(tokens) // arguments.one_at_a_time_count)][: arguments.one_at_a_time_count]
    count = min(len(few), arguments.slices or (8 if device.type == "cpu" else 1))
    slices, few_slices = ([rows[first::count] for first in range(count)] for rows in (tokens, few))
    sketch, unused = CountSketch(width, arguments.seed), UnusedSketch(width, arguments.seed)
    parts = []
    for budget in dict.fromkeys(arguments.tokens_per_batch):
        parts.append(teacher_part("plain", teacher, [], budget, slices, sketch))
        parts.append(teacher_part("ours", teacher, teacher.weights, budget, slices, sketch))
        if arguments.sketch_share:
            parts.append(teacher_part("ours, unsketched", teacher, teacher.weights, budget, slices, unused))
    parts.append(Part("one at a time", None, few_slices, sketching_alone))

    log.print("warming up", highlight=False)
    for part in parts:
        part.warm_up()
    for repeat in range(arguments.repeats):
        for number in range(count):
            for part in parts:
                part.measure(number, model, device)
        for part in parts:
            budget_text = f", {part.tokens_per_batch} tokens a batch" if part.tokens_per_batch else ""
            log.print(
                f"round {repeat + 1} of {arguments.repeats}: {part.name}{budget_text}: "
                f"{part.round_seconds[repeat]:.2f} s",
                highlight=False,
            )

    bergson = Bergson(None, "left out" if arguments.skip_bergson else "random weights lie in no folder")
    if arguments.model and not arguments.skip_bergson:
        window = getattr(model.config, "max_position_embeddings", arguments.max_tokens)
        bergson = run_bergson(
            arguments.model,
            tokens,
            dtype=arguments.dtype,
            threads=torch.get_num_threads(),
            window=window,
        )

    flops = forward_backward_flops(model, [len(t.ids) for t in tokens], [t.labelled for t in tokens])
    peak = peak_flops_per_second(device, arguments.dtype)
    plain, ours, single = _fastest(parts, "plain"), _fastest(parts, "ours"), _fastest(parts, "one at a time")
    return {
        "plain_tokens_per_second": plain.tokens_per_second,
        "ours_tokens_per_second": ours.tokens_per_second,
        "one_at_a_time_tokens_per_second": single.tokens_per_second,
        "bergson_tokens_per_second": bergson.tokens_per_second,
        "ratio_to_plain": ours.tokens_per_second / plain.tokens_per_second,
        "ratio_to_one_at_a_time": ours.tokens_per_second / single.tokens_per_second,
        "ratio_to_bergson": bergson.tokens_per_second and ours.tokens_per_second / bergson.tokens_per_second,
        "plain_tokens_per_batch": plain.tokens_per_batch,
        "ours_tokens_per_batch": ours.tokens_per_batch,
        "padding_share": ours.padding_share,
        "peak_memory_bytes": ours.peak_memory_bytes,
        "plain_peak_memory_bytes": plain.peak_memory_bytes,
        "one_at_a_time_peak_memory_bytes": single.peak_memory_bytes,
        "model_flops": flops,
        "peak_flops_per_second": peak,
        "model_flops_utilization": peak and flops / ours.seconds / peak,
        "plain_model_flops_utilization": peak and flops / plain.seconds / peak,
        "sketch_share": _sketch_share(parts, ours),
        "relative_error_to_autograd": error,
        "cosine_to_autograd": cosine,
        "figure": f"fastest of {arguments.repeats} on each of {count} slices",
        "rows": len(tokens),
        "tokens": sum(len(t.ids) for t in tokens),
        "labelled_tokens": sum(t.labelled for t in tokens),
        "one_at_a_time_rows": len(few),
        "one_at_a_time_tokens": sum(len(t.ids) for t in few),
        "model": arguments.model or arguments.random_weights,
        "random_weights": arguments.random_weights is not None,
        "rank": arguments.rank,
        "gradient_size": teacher.gradient_size,
        "layout": teacher.layout,
        "width": width,
        "dtype": arguments.dtype,
        "device": device.type,
        "device_name": name_of_device(device),
        "threads": torch.get_num_threads(),
        "seed": arguments.seed,
        "bergson_note": bergson.note,
        "parts": [
            {
                "part": part.name,
                "tokens_per_batch": part.tokens_per_batch,
                "tokens_per_second": part.tokens_per_second,
                "seconds_by_slice": [[p.seconds for p in passes] for passes in part.passes],
                "padding_share": part.padding_share,
                "largest_batch": part.largest_batch,
                "peak_memory_bytes": part.peak_memory_bytes,
            }
            for part in parts
        ],
        "versions": {"influcoder-ray": __version__, "python": platform.python_version()}
        | {name: version(name) for name in _VERSIONS},
    }


def _material(
    arguments: argparse.Namespace, adapter: AdapterSpec, device: torch.device
) -> tuple[Teacher, list[Tokens]]:
    """The teacher and its rows: a user's, or random ones."""
    spec = ModelSpec(
        path=arguments.model or arguments.random_weights,
        max_tokens=arguments.max_tokens,
        dtype=arguments.dtype,
        tokens_per_batch=max(arguments.tokens_per_batch),
        layout=arguments.layout,
    )
    if arguments.random_weights:
        if arguments.rows:
            raise UserError("--rows: --random-weights has no tokenizer for them; leave it out")
        if (arguments.min_tokens or 0) > arguments.max_tokens:
            raise UserError(f"--min-tokens: {arguments.min_tokens} is more than --max-tokens; give fewer")
        teacher = random_teacher(arguments.random_weights, spec, adapter, seed=arguments.seed, device=device)
        vocabulary = teacher.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        tokens = random_tokens(
            vocabulary,
            count=arguments.count,
            shortest=arguments.min_tokens or arguments.max_tokens,
            longest=arguments.max_tokens,
            seed=arguments.seed,
        )
        return teacher, tokens
    if not arguments.rows:
        raise UserError("--rows: missing; --model needs rows to work on")
    columns = _columns(arguments)
    teacher = Teacher.load(spec, adapter, seed=arguments.seed, device=device)
    return teacher, read_tokens(
        teacher,
        arguments.rows,
        columns,
        count=arguments.count,
        min_tokens=arguments.min_tokens or _LEAST_TOKENS,
    )


def _columns(arguments: argparse.Namespace) -> ColumnSpec | None:
    """The columns that were named; None if none was."""
    if not (arguments.prompt or arguments.response or arguments.text):
        return None
    if bool(arguments.prompt) != bool(arguments.response) or (arguments.text and arguments.prompt):
        raise UserError("--prompt: it goes together with --response; or give --text alone")
    if arguments.text:
        return ColumnSpec(text=arguments.text)
    return ColumnSpec(prompt=tuple(arguments.prompt), response=arguments.response)


def _agreement(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The largest relative error and the smallest cosine of gradients (N, G), row by row."""
    norms = np.linalg.norm(expected, axis=1)
    errors = np.linalg.norm(found - expected, axis=1) / norms
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / norms
    return float(errors.max()), float(cosines.min())


def _fastest(parts: Sequence[Part], name: str) -> Part:
    return max((p for p in parts if p.name == name), key=lambda p: p.tokens_per_second)


def _sketch_share(parts: Sequence[Part], ours: Part) -> float | None:
    """Share of our time that goes when nothing is sketched, at our best budget; None if not measured."""
    for part in parts:
        if part.name == "ours, unsketched" and part.tokens_per_batch == ours.tokens_per_batch:
            return 1 - part.seconds / ours.seconds
    return None


def _width(width: int) -> int:
    try:
        return SketchSpec(width=width).width
    except ValueError as error:
        raise UserError(
            f"--width: {width} is no width of a sketch; give a power of two from 1024 to 262144"
        ) from error
