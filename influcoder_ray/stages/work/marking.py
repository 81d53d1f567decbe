"""Marking: the exact influence of shown examples, split over the tokens that carry it."""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import pyarrow as pa
import torch

from influcoder_ray.config import PipelineSettings
from influcoder_ray.examples import Example
from influcoder_ray.examples.example import from_table, to_table
from influcoder_ray.examples.pieces import Part, marks, pieces
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.contributions import (
    TokenInfluence,
    sketched_token_influence,
    token_influence,
)
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.stages import mark, rerank, sample
from influcoder_ray.stages.signals import fit_preconditioner
from influcoder_ray.stages.texts import corpus_examples
from influcoder_ray.stages.work.shown import best_by_encoder, in_exact_order, ordered_queries
from influcoder_ray.stages.work.sketching import load_teacher
from influcoder_ray.tables import schemas
from influcoder_ray.tables.rows import read_rows
from influcoder_ray.tables.state import Manifest, Output, StageState, quarantine_table
from influcoder_ray.tables.units import Unit

_PARTS: tuple[Part, Part] = ("prompt", "response")


def gather(settings: PipelineSettings, record: StageState, unit_id: str, threads: int) -> Manifest:
    """Write the best examples of each query that the report shows, with their texts, query by query."""
    asked = [query.example_id for query, _ in ordered_queries(settings)[: settings.report.queries]]
    found = best_by_encoder(settings, asked, most=max(settings.report.marked, 1))
    if rerank.found(settings) is not None:
        found = in_exact_order(settings, found)
    shown = [row for row in found if row["rank"] <= settings.report.marked]
    shown.sort(key=lambda row: (asked.index(row["query_id"]), row["rank"]))
    texts = corpus_examples(settings, [row["source"] for row in shown])
    examples = to_table([texts[row["source"]] for row in shown], [""] * len(shown))
    queries = pa.array([row["query_id"] for row in shown], pa.string())
    pairs = examples.append_column(schemas.PAIRS.field("query_id"), queries).cast(schemas.PAIRS)
    # A row group is a query: units are cut between groups.
    output = Output({mark.PAIRS: pairs}, 0, 0, rows_per_group=max(1, len(shown) // max(1, len(asked))))
    return record.commit(unit_id, output, 0.0)


class MarkWork:
    """Holds the teacher and splits the influence of pairs of a query and an example."""

    def __init__(self, settings: PipelineSettings, threads: int) -> None:
        self._settings = settings
        self._teacher = load_teacher(settings.model, settings.adapter, seed=settings.seed, threads=threads)
        self._sketch = CountSketch(settings.sketch.width, settings.seed)
        self._preconditioner = fit_preconditioner(settings)

    @cached_property
    def _queries(self) -> dict[str, Example]:
        table = sample.state(self._settings.root).read(sample.QUERIES, schemas.EXAMPLES)
        return {query.example_id: query for query in from_table(table)}

    def read(self, unit: Unit) -> pa.Table:
        return read_rows(unit)

    def process(self, unit: Unit, rows: pa.Table, report: Callable[[int], None]) -> Output:
        pairs = zip(rows["query_id"].to_pylist(), from_table(rows), strict=True)
        shares: list[dict[str, Any]] = []
        refused: list[tuple[str, str, str]] = []
        for query_id, group in groupby(pairs, key=lambda pair: pair[0]):
            examples = [example for _, example in group]
            tokens = self._teacher.tokens(examples)
            split = self._split(self._queries[query_id], tokens)
            for example, own, found in zip(examples, tokens, split, strict=True):
                if isinstance(found, str):
                    refused.append((example.example_id, example.source, found))
                else:
                    place = {"query_id": query_id, "example_id": example.example_id}
                    shares += [place | share for share in self._shares(example, own, found)]
            report(len(examples))
        return Output(
            {unit.table: pa.Table.from_pylist(shares, schema=schemas.TOKEN_SHARES)},
            rows_in=rows.num_rows,
            rows_out=rows.num_rows - len(refused),
            quarantine=quarantine_table("mark", refused),
        )

    def _split(self, query: Example, tokens: Sequence[Tokens]) -> list[TokenInfluence | str]:
        """The influence of each example on a query, or why it has none."""
        (asked,) = self._teacher.tokens([query])
        faults = [own.fault or ("" if own.labelled else "no token to predict") for own in tokens]
        if asked.fault or not asked.labelled:
            faults = [fault or "its query has no gradient" for fault in faults]
        usable = [row for row, fault in enumerate(faults) if not fault]
        found: list[TokenInfluence | str] = list(faults)
        try:
            for row, one in zip(usable, self._influence(asked, [tokens[row] for row in usable]), strict=True):
                found[row] = one
        except (ValueError, torch.OutOfMemoryError):
            # One of them has no direction, or is too large for the device: the others are done by themselves.
            for row in usable:
                try:
                    (found[row],) = self._influence(asked, [tokens[row]])
                except (ValueError, torch.OutOfMemoryError) as error:
                    found[row] = str(error).splitlines()[0]
        return found

    def _influence(self, asked: Tokens, tokens: Sequence[Tokens]) -> list[TokenInfluence]:
        if not tokens:
            return []
        if self._preconditioner is None:
            return token_influence(self._teacher, asked, tokens)
        transform = self._preconditioner.transform
        return sketched_token_influence(self._teacher, self._sketch, asked, tokens, transform)

    def _shares(self, example: Example, tokens: Tokens, found: TokenInfluence) -> list[dict[str, Any]]:
        teacher = self._teacher
        own = pieces(
            example,
            tokens,
            teacher.tokenizer,
            max_tokens=teacher.spec.max_tokens,
            template=teacher.template,
        )
        return [
            {
                "part": part,
                "start": one.start,
                "end": one.end,
                "contribution": one.value,
                "influence": found.influence,
            }
            for part in _PARTS
            for one in marks(own, list(found.of_candidate), part)
        ]
