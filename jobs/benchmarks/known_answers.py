"""How well influence and its rivals find answers that are known, and what each way costs.

Two kinds of problem. Queries that name the pool rows which support them (--supports): each query has a
ranking, measured by R-precision, MRR and recall. Pool rows with a label (--label): the queries are
references, a row's score is its mean score over them, and the one ranking is measured by average precision.

Nothing is tested on what an encoder learnt from: test queries, the rows that support them and the rest of the
test rows are drawn by content, and what trains is drawn from what is left. Gradients and encoders are kept in
--work under all that decides them, so a call that was cut off goes on, and other settings never meet them.
"""

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from rich.console import Console
from transformers.utils import logging

from benchmarks import answer_rows
from benchmarks.answer_encoders import Signal, Signals, distilled
from benchmarks.answer_gradients import Gradients, GradientStore
from benchmarks.answer_methods import (
    COSINE,
    ENCODER,
    TEXT,
    UNTRAINED,
    Method,
    Test,
    as_rankings,
    by_encoders,
    by_gradients,
    by_words,
    reranked,
    untrained,
)
from benchmarks.answer_rows import Condition, Parts, Rows
from benchmarks.options import at_least, find_device, name_of_device
from benchmarks.table import show_known_answers, spoken
from influcoder_ray import __version__
from influcoder_ray.demo.weights import fetch_causal_lm, fetch_encoder
from influcoder_ray.encoder.head import SIDES
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.specs import DistillSpec, EncoderSpec, Recipe
from influcoder_ray.errors import UserError
from influcoder_ray.evaluation.agreement import Resampled
from influcoder_ray.evaluation.comparison import lead, over_seeds
from influcoder_ray.evaluation.known_answers import (
    interval,
    mean_over_seeds,
    r_precision,
    recall_at,
    reciprocal_rank,
    resample_pool,
    resample_queries,
)
from influcoder_ray.examples import ColumnSpec
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec, SketchSpec
from influcoder_ray.report.figures import CostPoint, as_file, cost_against_quality
from influcoder_ray.tables.place import Place

TITLE = "Known answers: how well influence, text similarity and counting words find them, and at what cost."

_VERSIONS = ("torch", "transformers")
_RESAMPLES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--pool", metavar="PATH", required=True, help="rows to rank: Parquet or JSON Lines")
    parser.add_argument("--queries", metavar="PATH", required=True, help="queries, or references")
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--supports", metavar="COLUMN", help="column of --queries: a list of ids of the pool")
    truth.add_argument(
        "--label", metavar="COLUMN", help="column of --pool: 1 for what is to be found, else 0"
    )
    parser.add_argument(
        "--where",
        metavar="COLUMN=VALUE",
        action="append",
        default=[],
        help="only rows with this value, in each file that has the column; several with commas; repeatable",
    )
    parser.add_argument("--id", metavar="COLUMN", default="id", help="column of unique ids (%(default)s)")
    parser.add_argument(
        "--prompt",
        nargs="+",
        metavar="COLUMN",
        default=["prompt"],
        help="column, or columns, of the prompt (prompt)",
    )
    parser.add_argument("--response", metavar="COLUMN", default="response", help="%(default)s")
    parser.add_argument("--text", metavar="COLUMN", help="the pool's column of raw text, in place of a pair")
    parser.add_argument("--query-prompt", nargs="+", metavar="COLUMN", help="as in the pool if unset")
    parser.add_argument("--query-response", metavar="COLUMN", help="as in the pool if unset")
    parser.add_argument(
        "--group",
        metavar="COLUMN",
        help="also measure each group apart: of queries, or of the rows to be found",
    )
    parser.add_argument(
        "--together",
        metavar="COLUMN",
        help="rows with the value of a test query, or of a row that supports one, are never learnt from",
    )
    parser.add_argument("--count", type=at_least(2), help="test queries; half of all if unset")
    parser.add_argument(
        "--rows",
        type=at_least(10),
        help="test rows at most: those to be found, and of the others some, which then stand for all",
    )
    parser.add_argument("--sample", type=at_least(10), default=600, help="rows to learn from (%(default)s)")
    parser.add_argument(
        "--sample-queries", type=at_least(10), help="queries to learn from; all that are not tested if unset"
    )
    parser.add_argument(
        "--recipe",
        choices=get_args(Recipe),
        default="spectral",
        help="of training (%(default)s)",
    )
    parser.add_argument("--seeds", type=at_least(1), default=1, help="encoders to train (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (%(default)s)")
    parser.add_argument(
        "--rerank",
        type=_share,
        nargs="*",
        default=[0.01, 0.05],
        metavar="SHARE",
        help="shares of the test rows to re-rank exactly for each query (0.01 0.05)",
    )
    parser.add_argument(
        "--recall-at",
        type=at_least(1),
        nargs="*",
        default=[10, 50],
        metavar="K",
        help="with --supports (10 50)",
    )
    parser.add_argument(
        "--negatives",
        metavar="COLUMN=VALUE",
        help="with --label: pool rows to take as negative references, and out of the test",
    )
    parser.add_argument("--negative-count", type=at_least(1), default=50, help="how many (%(default)s)")
    parser.add_argument(
        "--negative-weight",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="WEIGHT",
        help="a row's score is its mean over references less this times its mean over negative ones (1)",
    )
    parser.add_argument("--model", metavar="FOLDER", help="causal LM; the demo's, fetched, if unset")
    parser.add_argument("--encoder", metavar="FOLDER", help="encoder to train; the demo's, fetched, if unset")
    parser.add_argument("--adapter", metavar="FOLDER", help="a trained LoRA adapter, in place of a fresh one")
    parser.add_argument("--optimizer-state", metavar="FILE", help="Adam's state in its folder, for LESS")
    parser.add_argument("--rank", type=at_least(1), default=8, help="rank of a fresh adapter (%(default)s)")
    parser.add_argument("--width", type=int, default=16_384, help="width of the CountSketch (%(default)s)")
    parser.add_argument("--max-tokens", type=at_least(8), default=128, help="both windows (%(default)s)")
    parser.add_argument("--template", choices=("auto", "chat", "plain"), default="auto", help="%(default)s")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="%(default)s")
    parser.add_argument("--threads", type=at_least(1), help="torch's threads on a CPU; its choice if unset")
    parser.add_argument(
        "--work",
        metavar="FOLDER",
        default="known-answers",
        help="where gradients and encoders are kept (%(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    parser.add_argument("--figure", metavar="FILE", help="also draw cost against quality here (SVG)")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print a table and write the figures.

    Raises:
        UserError: a setting or an input that cannot be used.
    """
    logging.disable_progress_bar()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    figures = _figures(arguments, find_device(arguments.device))
    show_known_answers(figures)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
    if arguments.figure:
        Path(arguments.figure).write_text(as_file(draw(figures)))


def draw(figures: Mapping[str, Any]) -> str:
    """The SVG of what `_figures` gave: seconds against the first measure."""
    measure = figures["measures"][0]
    points = [
        CostPoint(m["method"], m["seconds"], *(m["figures"][measure][k] for k in ("mean", "low", "high")))
        for m in figures["methods"]
    ]
    name = spoken(measure)
    best = max(points, key=lambda point: point.mean)
    label = (
        f"{name} of {len(points)} methods against their seconds; {best.name} has the most, {best.mean:.3f}"
    )
    return cost_against_quality(points, name, label)


def _figures(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Everything measured, by the keys of the JSON file."""
    log = Console(stderr=True)

    def say(text: str) -> None:
        log.print(text, highlight=False, markup=False)

    queries, pool, negatives = _material(arguments)
    by_label = arguments.label is not None
    truth = (
        answer_rows.labels_of(pool, arguments.label)
        if by_label
        else answer_rows.supporting_rows(queries, arguments.supports, pool)
    )
    parts = answer_rows.split(
        queries,
        pool,
        positives=truth,
        seed=arguments.seed,
        count=arguments.count,
        rows=arguments.rows,
        sample=arguments.sample,
        sample_queries=arguments.sample_queries,
        together=arguments.together,
        negatives=negatives,
    )
    stores = _stores(arguments, device)
    found = _gradients(stores[0], queries, pool, parts, say)
    parts, refused = parts.without(
        queries=[row for row, fault in found["queries"].items() if fault],
        pool=[row for row, fault in found["pool"].items() if fault],
    )
    training, norms = _training(stores[0], queries, pool, parts)
    encoder = EncoderSpec(path=arguments.encoder or str(fetch_encoder(say)), max_tokens=arguments.max_tokens)
    encoders = [
        distilled(
            Place(arguments.work),
            encoder,
            DistillSpec.model_validate({"recipe": arguments.recipe}),
            training,
            gradients=stores[0].fingerprint,
            seed=seed,
            device=device,
            say=say,
        )
        for seed in range(arguments.seed, arguments.seed + arguments.seeds)
    ]
    test_queries = [*queries.taken(parts.queries), *pool.taken(parts.negatives)]
    rows = pool.taken(parts.rows)
    test = Test(test_queries, rows, stores[0].read(test_queries), stores[0].read(rows))
    adam: Gradients | None = None
    if len(stores) > 1:
        stores[1].compute(rows, say)
        adam = stores[1].read(rows)
    say("scores")
    sample = sum(len(signal.examples) for side in training.values() for signal in side.values())
    methods = [
        *by_words(test),
        untrained(test, Encoder.load(encoder, device)),
        *by_encoders(test, encoders, sample),
        *by_gradients(test, training, norms, adam),
    ]
    every = _rankings(arguments, methods, len(parts.queries), negatives=bool(negatives))
    measured = {
        m.name: [_measured(arguments, s, parts, truth, queries, pool) for s in m.scores] for m in every
    }
    means = {name: mean_over_seeds(seeds) for name, seeds in measured.items()}
    return {
        "measures": list(next(iter(means.values())).estimates),
        "methods": [
            {
                "method": m.name,
                "figures": interval(means[m.name]),
                "leads": lead(means[m.name], means[UNTRAINED]),
                "seeds": _over_seeds(measured[m.name]),
                "gradients": {
                    "sample": m.cost.sample,
                    "queries": m.cost.queries,
                    "rows": m.cost.rows,
                    "rows_for_one_query": m.cost.rows_for_one_query,
                },
                "seconds": m.cost.seconds + m.cost.gradients * stores[0].seconds_per_gradient,
            }
            for m in every
        ],
        "interval": f"95% of {_RESAMPLES} resamples of the test {'rows' if by_label else 'queries'}",
        "leads_over": UNTRAINED,
        "test": {
            "queries": len(parts.queries),
            "negative_queries": len(parts.negatives),
            "rows": len(parts.rows),
            "rows_that_these_stand_for": round(float(parts.row_weights.sum())),
            "positive_rows": int(truth[parts.rows].sum()) if isinstance(truth, np.ndarray) else None,
        },
        "training": {
            side: {name: len(signal.examples) for name, signal in splits.items()}
            for side, splits in training.items()
        },
        "left_out": {
            "unusable_rows": pool.unusable,
            "unusable_queries": queries.unusable,
            "without_gradient": refused,
        },
        "seeds": arguments.seeds,
        "chosen_epochs": [one.epoch for one in encoders],
        "seconds_per_gradient": stores[0].seconds_per_gradient,
        "options": {k: v for k, v in vars(arguments).items() if k not in ("json", "figure", "work")},
        "gradients": dict(stores[0].fingerprint.fields),
        "device_name": name_of_device(device),
        "threads": torch.get_num_threads(),
        "versions": {"influcoder-ray": __version__, "python": platform.python_version()}
        | {name: version(name) for name in _VERSIONS},
    }


def _material(arguments: argparse.Namespace) -> tuple[Rows, Rows, list[int]]:
    """Queries, pool, and the pool rows that are negative references."""
    conditions = [Condition.parse(text, option="--where") for text in arguments.where]
    if arguments.negatives and not arguments.label:
        raise UserError(
            "--negatives: queries with --supports have no references; give --label, or leave it out"
        )
    unwanted = arguments.negatives and Condition.parse(arguments.negatives, option="--negatives")
    prompt, response = tuple(arguments.prompt), arguments.response
    pair = ColumnSpec(id=arguments.id, prompt=prompt, response=response)
    columns = ColumnSpec(id=arguments.id, text=arguments.text) if arguments.text else pair
    query_columns = ColumnSpec(
        id=arguments.id,
        prompt=tuple(arguments.query_prompt or prompt),
        response=arguments.query_response or response,
    )
    of_pool = [arguments.label, arguments.together, unwanted and unwanted.column]
    of_queries = [arguments.supports]
    (of_pool if arguments.label else of_queries).append(arguments.group)
    queries = answer_rows.read(
        arguments.queries,
        query_columns,
        option="--queries",
        conditions=conditions,
        further=[name for name in of_queries if name],
        perhaps=[arguments.together] if arguments.together else [],
    )
    pool = answer_rows.read(
        arguments.pool,
        columns,
        option="--pool",
        conditions=conditions,
        further=[name for name in of_pool if name],
    )
    for condition in conditions:
        if condition.column not in queries.columns and condition.column not in pool.columns:
            raise UserError(
                f"--where: neither file has a column {condition.column!r}; "
                f"the pool has {', '.join(pool.columns)}"
            )
    chosen = answer_rows.choose(pool, unwanted, arguments.negative_count, arguments.seed) if unwanted else []
    return queries, pool, chosen


def _stores(arguments: argparse.Namespace, device: torch.device) -> list[GradientStore]:
    """Where gradients are kept, and, where Adam's state is at hand, the steps that it would take."""
    if arguments.optimizer_state and not arguments.adapter:
        raise UserError("--optimizer-state: it is that of a trained adapter; give its folder as --adapter")
    try:
        sketch = SketchSpec(width=arguments.width)
    except ValidationError as error:
        raise UserError(
            f"--width: {arguments.width} is no width of a sketch; give a power of two from 1024 to 262144"
        ) from error
    model = ModelSpec(
        path=arguments.model or str(fetch_causal_lm(lambda text: None)),
        max_tokens=arguments.max_tokens,
        template=arguments.template,
    )
    adapters = [AdapterSpec(path=arguments.adapter, rank=arguments.rank)]
    if arguments.optimizer_state:
        adapters.append(AdapterSpec(path=arguments.adapter, optimizer_state=arguments.optimizer_state))
    return [
        GradientStore(
            Place(arguments.work), model, adapter, sketch, seed=arguments.seed, device=device, adam=number > 0
        )
        for number, adapter in enumerate(adapters)
    ]


def _gradients(
    store: GradientStore, queries: Rows, pool: Rows, parts: Parts, say: answer_rows.Say
) -> dict[str, dict[int, str]]:
    """Compute what is missing of all gradients; why each row of either file has none, or empty."""
    sides = {"queries": (queries, parts.of_queries), "pool": (pool, parts.of_pool)}
    store.compute([e for rows, wanted in sides.values() for e in rows.taken(wanted)], say)
    return {
        side: dict(zip(wanted, store.read(rows.taken(wanted)).faults, strict=True))
        for side, (rows, wanted) in sides.items()
    }


def _training(
    store: GradientStore, queries: Rows, pool: Rows, parts: Parts
) -> tuple[Signals, dict[str, npt.NDArray[np.float32]]]:
    """What encoders learn from, and the lengths of the sketches of each side's train split."""
    signals: dict[Any, dict[str, Signal]] = {}
    norms: dict[str, npt.NDArray[np.float32]] = {}
    for side, rows in zip(SIDES, (queries, pool), strict=True):
        signals[side] = {}
        for name, wanted in parts.training[side].items():
            examples = rows.taken(wanted)
            gradients = store.read(examples)
            signals[side][name] = Signal(examples, gradients.sketches)
            if name == "train":
                norms[side] = gradients.norms
    return signals, norms


def _rankings(
    arguments: argparse.Namespace, methods: Sequence[Method], positives: int, *, negatives: bool
) -> list[Method]:
    """All methods with the rankings that are measured, the re-ranked ones among them."""
    every: list[Method] = []
    for weight in [0.0, *arguments.negative_weight] if negatives else [0.0]:
        ranked = {
            m.name: as_rankings(m, positives, weight, by_label=arguments.label is not None) for m in methods
        }
        for share in arguments.rerank:
            for first, beside in ((UNTRAINED, None), (ENCODER, None), (ENCODER, TEXT)):
                second = None if beside is None else ranked[beside]
                ranked |= {m.name: m for m in reranked(ranked[first], ranked[COSINE], share, second)}
        suffix = f", negatives x {weight:g}" if weight else ""
        every += [m.named(f"{m.name}{suffix}") for m in ranked.values()]
    return every


def _measured(
    arguments: argparse.Namespace,
    scores: npt.NDArray[np.float64],
    parts: Parts,
    truth: Sequence[Sequence[int]] | npt.NDArray[np.bool_],
    queries: Rows,
    pool: Rows,
) -> Resampled:
    """Every measure of one ranking of all, or of one of each query."""
    if isinstance(truth, np.ndarray):
        groups = [str(pool.cells[arguments.group][row]) for row in parts.rows] if arguments.group else None
        return resample_pool(
            scores[0],
            truth[parts.rows],
            resamples=_RESAMPLES,
            seed=arguments.seed,
            weights=parts.row_weights,
            groups=groups,
        )
    relevant = np.array([np.isin(parts.rows, truth[query]) for query in parts.queries])
    measures = {
        "r_precision": r_precision(scores, relevant),
        "mrr": reciprocal_rank(scores, relevant),
        **{f"recall_at_{k}": recall_at(scores, relevant, k) for k in arguments.recall_at},
    }
    groups = [str(queries.cells[arguments.group][row]) for row in parts.queries] if arguments.group else None
    return resample_queries(measures, resamples=_RESAMPLES, seed=arguments.seed, groups=groups)


def _over_seeds(seeds: Sequence[Resampled]) -> dict[str, Any] | None:
    """Mean, spread and the figures of several training seeds; None of one, or of what is not trained."""
    if len(seeds) < 2:
        return None
    return over_seeds([one.estimates for one in seeds])


def _share(text: str) -> float:
    """An argument's type: a share from 0 to 1."""
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share above 0 and up to 1")
    return share
