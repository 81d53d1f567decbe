"""Embedding beside sentence-transformers and the bare forward pass, on the same rows, model and token window.

Parts, each over all rows:
    bare forward            the model on token ids that are there, in padded batches of like length; no text,
                            no pooling, nothing written
    ours                    `Encoder.embed`: texts to unit vectors
    ours, as the stage      the same with a head and familiarity, as the stage `embed` does it
    sentence_transformers   its `encode`, with --sentence-batch texts a batch, where it is installed
Rows are cut into slices, and each slice goes through all parts in turn before the next one, so that a noisy
machine disturbs all alike; a part's figure is the sum of its fastest passes over each slice, and bare forward
and ours each have the token budget that suits them best. Tokens are real ones: padding counts for nothing.

With --through-ray the whole stage, from files to committed units, is timed on Ray and without it, too (see
`embed_stage`).

Keys of the JSON file:
    ratio_to_bare_forward, ratio_to_sentence_transformers, documents_per_second
        of `ours`; null where there is no sentence-transformers
    stage_ratio_to_bare_forward
        of `ours, as the stage`
    ray_ratio_to_without_ray
        throughput on Ray, its start-up apart, over that without; null without --through-ray
    largest_difference_to_sentence_transformers
        of one number of a unit vector, over rows whose window holds the same tokens there
"""

import argparse
import importlib.util
import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from torch import nn

from benchmarks.embed_stage import Stage
from benchmarks.material import read_examples
from benchmarks.measure import Pass, one_pass
from benchmarks.options import at_least, find_device, name_of_device
from benchmarks.table import show_embedding
from influcoder_ray import __version__
from influcoder_ray.encoder.familiarity import Familiarity
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.specs import EncoderSpec
from influcoder_ray.errors import RunFailed, UserError
from influcoder_ray.examples import ColumnSpec, Example
from influcoder_ray.examples.batching import token_batches
from influcoder_ray.examples.tokens import student_text
from influcoder_ray.stages.work.embedding import embed_familiarly

TITLE = "Embedding: documents per second beside sentence-transformers and the bare forward pass."

# Of the head and of familiarity: what a run with default settings has, with numbers that mean nothing.
_DIMENSIONS, _SKETCH_WIDTH, _REFERENCES, _HELD_OUT = 128, 1024, 2048, 256
# The most by which a number of a unit vector may differ from sentence-transformers' in float32: beyond, the
# thing timed is not the same embedding.
_MOST_DIFFERENCE = 1e-3
_WARM_UP_EVERY = 8
# Into which the rows are cut for the whole stage.
_UNITS = 4
_VERSIONS = ("torch", "transformers", "tokenizers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--encoder", required=True, metavar="FOLDER", help="text encoder, as settings name it"
    )
    parser.add_argument(
        "--rows",
        required=True,
        nargs="+",
        metavar="FILE",
        help="Parquet or JSON Lines with the rows; of several, rows are taken in turn",
    )
    parser.add_argument("--prompt", nargs="+", metavar="COLUMN", help="column, or columns, of the prompt")
    parser.add_argument("--response", metavar="COLUMN", help="column of the response")
    parser.add_argument("--text", metavar="COLUMN", help="column of raw text")
    parser.add_argument("--count", type=at_least(2), default=1000, help="rows (%(default)s)")
    parser.add_argument("--max-tokens", type=at_least(8), default=256, help="the window (%(default)s)")
    parser.add_argument("--pool", choices=("auto", "mean", "cls", "last"), default="auto", help="%(default)s")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="%(default)s"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="%(default)s")
    parser.add_argument("--threads", type=at_least(1), help="torch's threads on a CPU; its choice if unset")
    parser.add_argument(
        "--tokens-per-batch",
        type=at_least(8),
        nargs="+",
        default=[2048],
        metavar="TOKENS",
        help="token budgets to try (2048)",
    )
    parser.add_argument(
        "--sentence-batch", type=at_least(1), default=32, help="sentence-transformers' own default (32)"
    )
    parser.add_argument(
        "--through-ray",
        action="store_true",
        help="time the whole stage too, on Ray and without it; starts Ray",
    )
    parser.add_argument("--slices", type=at_least(1), default=4, help="slices of the rows (%(default)s)")
    parser.add_argument("--repeats", type=at_least(1), default=2, help="rounds (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print a table and write the figures.

    Raises:
        UserError: a setting or an input that cannot be used.
        RunFailed: the vectors are not the same, so that their speed would mean nothing.
    """
    device = find_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    figures = _figures(arguments, device)
    show_embedding(figures)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")


@dataclass
class Way:
    """One way over the rows, slice by slice; `vectors` are those of its last pass over each slice.

    `work` gives unit vectors (n, d) of a slice, or None.
    """

    name: str
    tokens_per_batch: int | None
    model: nn.Module
    tokens: int
    slices: Sequence[Sequence[Any]]
    work: Callable[[Sequence[Any]], np.ndarray | None]
    passes: list[list[Pass]] = field(init=False)
    vectors: list[np.ndarray | None] = field(init=False)

    def __post_init__(self) -> None:
        self.passes = [[] for _ in self.slices]
        self.vectors = [None for _ in self.slices]

    def measure(self, number: int, device: torch.device) -> None:
        """One more counted pass over the slice of this number."""

        def work() -> None:
            self.vectors[number] = self.work(self.slices[number])

        self.passes[number].append(one_pass(work, self.model, device))

    @property
    def seconds(self) -> float:
        """Of the fastest pass over each slice, in all."""
        return sum(min(p.seconds for p in passes) for passes in self.passes)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def padding_share(self) -> float:
        """Share of positions that were padding."""
        return 1 - self.tokens / sum(passes[0].positions for passes in self.passes)

    @property
    def peak_memory_bytes(self) -> int | None:
        """Of the pass that took most."""
        found = [p.peak_memory_bytes for passes in self.passes for p in passes]
        return max((peak for peak in found if peak is not None), default=None)


def _figures(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Everything measured, by the keys of the JSON file."""
    log = Console(stderr=True)
    spec = EncoderSpec(
        path=arguments.encoder, max_tokens=arguments.max_tokens, dtype=arguments.dtype, pooling=arguments.pool
    )
    encoder = Encoder.load(spec, device)
    examples = read_examples(arguments.rows, _columns(arguments), count=arguments.count)
    windows, cut = encoder.windows(examples)
    tokens = sum(len(window) for window in windows)
    count = min(arguments.slices, len(examples))
    slices = [examples[first::count] for first in range(count)]

    ways = []
    for budget in dict.fromkeys(arguments.tokens_per_batch):
        ways += _own_ways(encoder, budget, slices, windows, arguments)
    sentences = _sentence_transformers(encoder, arguments, slices, tokens, log)
    ways += sentences

    log.print("warming up", highlight=False)
    for way in ways:
        way.work(way.slices[0][::_WARM_UP_EVERY])
    for repeat in range(arguments.repeats):
        for number in range(count):
            for way in ways:
                way.measure(number, device)
        for way in ways:
            seconds = sum(passes[repeat].seconds for passes in way.passes)
            log.print(
                f"round {repeat + 1} of {arguments.repeats}: {way.name}: {seconds:.2f} s", highlight=False
            )

    bare, ours, stage = (_fastest(ways, name) for name in ("bare forward", "ours", "ours, as the stage"))
    there = sentences[0] if sentences else None
    difference = None
    if there is not None:
        alike = [not c or e.is_raw_text for c, e in zip(cut, examples, strict=True)]
        difference = _largest_difference(ours, there, [alike[first::count] for first in range(count)])
        if encoder.precision == "float32" and not difference <= _MOST_DIFFERENCE:
            raise RunFailed(
                f"vectors differ from sentence-transformers' by up to {difference:.2g}, more than "
                f"{_MOST_DIFFERENCE:g}: it is not the same embedding that was timed"
            )
    on_ray, without_ray = (
        _through_ray(encoder, examples, arguments, log) if arguments.through_ray else (None, None)
    )
    return {
        "ratio_to_bare_forward": bare.seconds / ours.seconds,
        "ratio_to_sentence_transformers": there and there.seconds / ours.seconds,
        "documents_per_second": len(examples) / ours.seconds,
        "tokens_per_second": ours.tokens_per_second,
        "stage_ratio_to_bare_forward": bare.seconds / stage.seconds,
        "ray_ratio_to_without_ray": on_ray and without_ray and without_ray / on_ray,
        "seconds_on_ray": on_ray,
        "seconds_without_ray": without_ray,
        "largest_difference_to_sentence_transformers": difference,
        "padding_share": ours.padding_share,
        "peak_memory_bytes": ours.peak_memory_bytes,
        "figure": f"fastest of {arguments.repeats} on each of {count} slices",
        "rows": len(examples),
        "tokens": tokens,
        "rows_cut": sum(cut),
        "raw_text_rows": sum(e.is_raw_text for e in examples),
        "encoder": arguments.encoder,
        "max_tokens": spec.max_tokens,
        "dtype": encoder.precision,
        "device": device.type,
        "device_name": name_of_device(device),
        "threads": torch.get_num_threads(),
        "seed": arguments.seed,
        "parts": [
            {
                "part": way.name,
                "tokens_per_batch": way.tokens_per_batch,
                "tokens_per_second": way.tokens_per_second,
                "documents_per_second": len(examples) / way.seconds,
                "seconds_by_slice": [[p.seconds for p in passes] for passes in way.passes],
                "padding_share": way.padding_share,
                "peak_memory_bytes": way.peak_memory_bytes,
            }
            for way in ways
        ],
        "versions": {"influcoder-ray": __version__, "python": platform.python_version()}
        | {name: version(name) for name in (*_VERSIONS, *(["sentence-transformers"] if there else []))},
    }


def _own_ways(
    encoder: Encoder,
    budget: int,
    slices: Sequence[Sequence[Example]],
    windows: Sequence[Sequence[int]],
    arguments: argparse.Namespace,
) -> list[Way]:
    """The bare forward pass and ours, at a token budget."""
    tokens = sum(len(window) for window in windows)
    own = Encoder(
        encoder.model,
        encoder.tokenizer,
        encoder.pooling,
        encoder.spec.model_copy(update={"tokens_per_batch": budget}),
    )
    headed = Encoder(own.model, own.tokenizer, own.pooling, own.spec, _random_head(own, arguments.seed))
    measure = _random_familiarity(headed, arguments.seed)

    def way(
        name: str, parts: Sequence[Sequence[Any]], work: Callable[[Sequence[Any]], np.ndarray | None]
    ) -> Way:
        return Way(name, budget, encoder.model, tokens, parts, work)

    batches = [_batches(own, windows[first :: len(slices)], budget) for first in range(len(slices))]
    ways = [
        way("bare forward", batches, _bare_forward(own)),
        way("ours", slices, lambda some: own.embed(some)[0]),
        way("ours, as the stage", slices, lambda some: embed_familiarly(headed, some, "pool", measure)[0]),
    ]
    return ways


def _bare_forward(encoder: Encoder) -> Callable[[Sequence[tuple[torch.Tensor, torch.Tensor]]], None]:
    """The bare forward pass of an encoder over batches of ids and mask, (N, T) each."""

    def work(batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        low = encoder.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(encoder.device.type, torch.bfloat16, enabled=low):
            for ids, mask in batches:
                encoder.model(input_ids=ids, attention_mask=mask)

    return work


def _batches(
    encoder: Encoder, windows: Sequence[Sequence[int]], budget: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and mask, (N, T) each on the encoder's device, of batches of like length."""
    batches = []
    for rows in token_batches([len(window) for window in windows], budget):
        some = [torch.tensor(windows[row]) for row in rows]
        ids, mask = (
            nn.utils.rnn.pad_sequence(side, batch_first=True).to(encoder.device)
            for side in (some, [torch.ones_like(window) for window in some])
        )
        batches.append((ids, mask))
    return batches


def _random_head(encoder: Encoder, seed: int) -> Any:
    """A head of random weights: it takes what a trained one takes."""
    generator = torch.Generator().manual_seed(seed)
    head = encoder.new_head(_DIMENSIONS, _SKETCH_WIDTH)
    head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * 0.01)
    return head


def _random_familiarity(encoder: Encoder, seed: int) -> Familiarity:
    """A measure against random texts: it takes what one against as many real ones takes."""
    generator = np.random.default_rng(seed)
    groups = encoder.reading.groups
    width = sum(groups[:-1:2]) + groups[-1]
    training, held_out = (
        generator.standard_normal((rows, width)).astype(np.float32) for rows in (_REFERENCES, _HELD_OUT)
    )
    return Familiarity.fit(training, held_out, lengths=groups[-1], neighbours=5).to(encoder.device)


def _sentence_transformers(
    encoder: Encoder,
    arguments: argparse.Namespace,
    slices: Sequence[Sequence[Example]],
    tokens: int,
    log: Console,
) -> list[Way]:
    """Its `encode` on the same texts with the same window, one way; none where it is not installed."""
    if importlib.util.find_spec("sentence_transformers") is None:
        log.print("sentence_transformers: not installed here, and left out", highlight=False)
        return []
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as folder:
        # Saved by us, so that pooling and window are those of the other parts whatever the folder says.
        encoder.save(Path(folder))
        there = SentenceTransformer(folder, device=encoder.device.type, local_files_only=True)
    texts = [[student_text(e, encoder.tokenizer, encoder.spec.separator) for e in some] for some in slices]

    def encode(some: Sequence[str]) -> np.ndarray:
        found: np.ndarray = there.encode(
            list(some), batch_size=arguments.sentence_batch, show_progress_bar=False
        )
        return found

    model = cast(nn.Module, there[0].auto_model)
    return [Way("sentence_transformers", None, model, tokens, texts, encode)]


def _through_ray(
    encoder: Encoder, examples: Sequence[Example], arguments: argparse.Namespace, log: Console
) -> tuple[float, float]:
    """Seconds of the whole stage on Ray, and without it: the fastest pass of each."""
    headed = Encoder(
        encoder.model, encoder.tokenizer, encoder.pooling, encoder.spec, _random_head(encoder, arguments.seed)
    )
    measure = _random_familiarity(headed, arguments.seed)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder), headed, measure, examples, units=_UNITS)
        # Without it first: Ray's own processes stay once they are there.
        for name, seconds_of in (
            ("without Ray", stage.seconds_without_ray),
            ("on Ray", stage.seconds_on_ray),
        ):
            found.append(min(seconds_of() for _ in range(arguments.repeats)))
            log.print(f"the stage {name}: {found[-1]:.2f} s", highlight=False)
    return found[1], found[0]


def _largest_difference(ours: Way, there: Way, alike: Sequence[Sequence[bool]]) -> float:
    """Of any number of a vector, over rows where `alike`."""
    largest = 0.0
    for left, right, where in zip(ours.vectors, there.vectors, alike, strict=True):
        assert left is not None
        assert right is not None
        largest = max(largest, float(np.abs(left - right)[np.array(where)].max(initial=0.0)))
    return largest


def _columns(arguments: argparse.Namespace) -> ColumnSpec | None:
    """The columns that were named; None if none was."""
    if bool(arguments.prompt) != bool(arguments.response):
        raise UserError("--prompt: it goes together with --response")
    if not (arguments.prompt or arguments.text):
        return None
    prompt = tuple(arguments.prompt) if arguments.prompt else None
    return ColumnSpec(prompt=prompt, response=arguments.response, text=arguments.text)


def _fastest(ways: Sequence[Way], name: str) -> Way:
    return min((way for way in ways if way.name == name), key=lambda way: way.seconds)
