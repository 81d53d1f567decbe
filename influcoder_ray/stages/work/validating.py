"""Validation: the scores that choose what is trained on, the fine-tunes, and what they show."""

import json
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
import pyarrow as pa

from influcoder_ray.config import PipelineSettings
from influcoder_ray.evaluation.baselines import tfidf_scores
from influcoder_ray.examples import Example
from influcoder_ray.examples.example import from_table, to_table
from influcoder_ray.retraining.designs import Design, members, merit, part_size
from influcoder_ray.retraining.finetuning import FineTuner, step_rows, trained_adapter
from influcoder_ray.retraining.outcomes import outcomes
from influcoder_ray.stages import validate
from influcoder_ray.stages.folders import at_hand
from influcoder_ray.stages.signals import Signals, fit_preconditioner, influence, preconditioned, read_signals
from influcoder_ray.stages.work.device import prepare_device
from influcoder_ray.stages.work.embedding import load_encoder
from influcoder_ray.stages.work.evaluation import distilled_scores, text_vectors
from influcoder_ray.stages.work.scan import seeded_key
from influcoder_ray.tables import schemas
from influcoder_ray.tables.state import Manifest, Output, StageState
from influcoder_ray.tables.units import Unit

# Queries by which examples are chosen, and queries whose loss is measured.
CHOOSING, HELD_OUT = "choosing", "held_out"
_SPREAD = (
    "loss: standard deviation over seeds; against_random: paired by seed and query, intervals at 95%; "
    "datamodelling: standard deviation over bootstrap resamples of the queries, chance_std over permutations "
    "of the subsets; for random scores over draws"
)


def score(settings: PipelineSettings, record: StageState, unit_id: str, threads: int) -> Manifest:
    """Write pool and queries of the validation, and every method's scores of them.

    Both are of the sample's test split, so that the encoder has learnt from none of them. The queries are cut
    in two: those whose loss is measured have no say in what is trained on.
    """
    spec = settings.validate
    pool = _part(settings, read_signals(settings, "pool", "test"), spec.pool)
    queries = _part(settings, read_signals(settings, "queries", "test"), None)
    held_out = min(spec.queries, len(queries) // 2)
    splits = [HELD_OUT] * held_out + [CHOOSING] * (len(queries) - held_out)
    preconditioner = fit_preconditioner(settings)
    exact = influence(preconditioned(queries, preconditioner), preconditioned(pool, preconditioner))
    untrained = load_encoder(settings.encoder, threads=threads)
    by_method = {
        "encoder": distilled_scores(settings, settings.seed, queries, pool, threads)["encoder"],
        "exact": exact,
        "untrained_encoder": text_vectors(untrained, queries, "queries")
        @ text_vectors(untrained, pool, "pool").T,
        "tfidf": tfidf_scores(*([e.text for e in side.examples] for side in (queries, pool))),
    }
    ids = [np.array([e.example_id for e in side.examples], object) for side in (queries, pool)]
    table = pa.table(
        {
            "query_id": np.repeat(ids[0], len(pool)),
            "example_id": np.tile(ids[1], len(queries)),
            **{name: np.asarray(one).reshape(-1).astype(np.float32) for name, one in by_method.items()},
        },
        schema=schemas.VALIDATION_SCORES,
    )
    tables = {
        validate.POOL: to_table(pool.examples, ["test"] * len(pool)),
        validate.QUERIES: to_table(queries.examples, splits),
        validate.SCORES: table,
    }
    return record.commit(unit_id, Output(tables, rows_in=0, rows_out=0), 0.0)


class Material:
    """What `score` has written: pool, queries and scores.

    Attributes:
        pool: (P,) the examples to train on.
        held_out: (Q,) the queries whose loss is measured.
    """

    def __init__(self, settings: PipelineSettings, record: StageState) -> None:
        self._settings = settings
        queries = record.read(validate.QUERIES, schemas.EXAMPLES)
        splits = queries["split"].to_pylist()
        self.pool: list[Example] = from_table(record.read(validate.POOL, schemas.EXAMPLES))
        self.held_out = [q for q, split in zip(from_table(queries), splits, strict=True) if split == HELD_OUT]
        self.choosing = len(splits) - len(self.held_out)
        self._choosing_rows = [row for row, split in enumerate(splits) if split == CHOOSING]
        self._held_out_rows = [row for row, split in enumerate(splits) if split == HELD_OUT]
        table = record.read(validate.SCORES, schemas.VALIDATION_SCORES)
        self._scores = {
            name: table[name].to_numpy().reshape(len(splits), len(self.pool))
            for name in schemas.VALIDATION_SCORES.names[2:]
        }

    @property
    def scores(self) -> Mapping[str, np.ndarray]:
        """Each method's scores (Q, P) of the held-out queries."""
        return {name: one[self._held_out_rows] for name, one in self._scores.items()}

    @cached_property
    def _merits(self) -> Mapping[str, np.ndarray]:
        return {name: merit(self._scores[name][self._choosing_rows]) for name in validate.METHODS}

    @cached_property
    def _contents(self) -> list[str]:
        return [example.content_hash for example in self.pool]

    def members(self, design: Design) -> list[int]:
        """The rows of the pool that a design trains on."""
        settings = self._settings
        return members(design, settings.validate, self._contents, self._merits, settings.seed)


class FineTuneWork:
    """Holds the causal LM and does fine-tunes, each a unit.

    Args:
        designs: what each unit is, by its id.
    """

    def __init__(self, settings: PipelineSettings, designs: Mapping[str, Design], threads: int) -> None:
        self._settings = settings
        self._designs = designs
        adapter = trained_adapter(at_hand(settings.adapter), settings.validate.rank)
        self._tuner = FineTuner.load(at_hand(settings.model), adapter, device=prepare_device(threads))
        self._material = Material(settings, validate.state(settings.root))
        self._pool = self._tuner.tokens(self._material.pool)
        self._queries = self._tuner.tokens(self._material.held_out)

    def read(self, unit: Unit) -> list[int]:
        return self._material.members(self._designs[unit.unit_id])

    def process(self, unit: Unit, rows: list[int], report: Callable[[int], None]) -> Output:
        design, spec = self._designs[unit.unit_id], self._settings.validate
        tokens = [self._pool[row] for row in rows]
        steps: list[list[int]] = []
        if design.kind == "before":
            self._tuner.begin(design.seed)
        else:
            contents = [self._material.pool[row].content_hash for row in rows]
            steps = step_rows(contents, spec.steps, spec.batch_size, design.seed)
            self._tuner.train(
                tokens, steps, learning_rate=spec.learning_rate, seed=design.seed, report=report
            )
        losses = self._tuner.losses(self._queries)
        held_out = self._material.held_out
        table = pa.table(
            {
                "part": [design.part] * len(held_out),
                "kind": [design.kind] * len(held_out),
                "by": [design.by] * len(held_out),
                "draw": [design.draw] * len(held_out),
                "examples": [len(rows)] * len(held_out),
                "seed": [design.seed] * len(held_out),
                "query_id": [query.example_id for query in held_out],
                "loss": losses,
            },
            schema=schemas.VALIDATION_LOSSES,
        )
        taken = [row for step in steps for row in step]
        counters = {"fine_tunes": 1, "tokens": sum(len(tokens[row].ids) for row in taken)}
        return Output({validate.LOSSES: table}, len(taken), len(taken), counters=counters)


def conclude(settings: PipelineSettings, record: StageState) -> bytes:
    """The content of validation.json: what the fine-tunes that the settings ask for show."""
    material, spec = Material(settings, record), settings.validate
    order = {query.example_id: row for row, query in enumerate(material.held_out)}
    held: dict[Design, np.ndarray] = {}
    for part in record.read_each(validate.LOSSES, schemas.VALIDATION_LOSSES):
        first = part.slice(0, 1).to_pylist()[0]
        rows = [order[query_id] for query_id in part["query_id"].to_pylist()]
        losses = np.empty(len(order))
        losses[rows] = part["loss"].to_numpy()
        held[Design(first["kind"], first["by"], first["draw"], first["seed"])] = losses
    wanted = validate.designs(settings)
    subsets = np.zeros((spec.subsets, len(material.pool)), dtype=np.bool_)
    for draw in range(spec.subsets):
        subsets[draw, material.members(Design("subset", draw=draw))] = True
    pool = len(material.pool)
    found = {
        "pool": pool,
        "selected": part_size(spec.share, pool),
        "removed": part_size(spec.share, pool),
        "in_subset": part_size(spec.alpha, pool),
        "queries": {"choosing": material.choosing, "held_out": len(material.held_out)},
        "seeds": [settings.seed + number for number in range(spec.seeds)],
        "subsets": spec.subsets,
        "subset_seeds": spec.subset_seeds,
        "fine_tune": spec.fine_tuning | {"examples_seen": spec.steps * spec.batch_size},
        "spread": _SPREAD,
        **outcomes({design: held[design] for design in wanted}, material.scores, subsets, settings.seed),
    }
    return json.dumps(found, indent=2).encode()


def _part(settings: PipelineSettings, signals: Signals, count: int | None) -> Signals:
    """So many of the examples, chosen and ordered by a seeded hash of their content; all if None."""
    contents = [e.content_hash for e in signals.examples]
    order = sorted(
        range(len(contents)), key=lambda row: seeded_key(settings.seed, "validate", contents[row])
    )[:count]
    return Signals([signals.examples[row] for row in order], signals.sketches[order], signals.total)
