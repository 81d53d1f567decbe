"""Embedding: the unit vector of every row by the distilled encoder, and how familiar it is to that."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.familiarity import Familiarity, read_familiarity
from influcoder_ray.encoder.features import text_vectors
from influcoder_ray.encoder.head import Side
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.specs import FAMILIARITY, EncoderSpec
from influcoder_ray.examples import Example
from influcoder_ray.examples.columns import Unusable, examples_from_cells
from influcoder_ray.examples.example import from_table
from influcoder_ray.stages.folders import at_hand
from influcoder_ray.stages.work.device import prepare_device
from influcoder_ray.stages.work.query_vectors import of_gradients, with_gradients
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import vector_column
from influcoder_ray.tables.cells import read_pieces
from influcoder_ray.tables.rows import read_rows
from influcoder_ray.tables.state import Output, quarantine_table
from influcoder_ray.tables.units import Unit


def load_encoder(spec: EncoderSpec, *, threads: int) -> Encoder:
    """The encoder of a folder, wherever that lies, on this worker's device."""
    return Encoder.load(at_hand(spec), prepare_device(threads))


def load_student(settings: PipelineSettings, folder: str, device: torch.device) -> Encoder:
    """The distilled encoder of a folder, wherever that lies, with vectors as the settings want them."""
    encoder = Encoder.load(at_hand(settings.encoder.model_copy(update={"path": folder})), device)
    dimensions = settings.embed.dimensions
    return encoder if dimensions is None else encoder.foremost(dimensions)


def load_familiarity(encoder: Encoder) -> dict[str, Familiarity]:
    """What familiarity to an encoder is measured against, of pool and queries, on its device."""
    measures = read_familiarity(Path(encoder.spec.path) / FAMILIARITY)
    return {side: measure.to(encoder.device) for side, measure in measures.items()}


def embed_familiarly(
    encoder: Encoder,
    examples: Sequence[Example],
    side: Side,
    measure: Familiarity,
    report: Callable[[int], None] = lambda rows: None,
) -> tuple[np.ndarray, np.ndarray, list[bool], list[int]]:
    """Unit vectors (N, d) float32 of examples, their familiarity (N,), whether each was cut, its tokens."""
    vectors, distance, cut, tokens = encoder.embed_with_traits(
        examples, side, lambda traits: measure.distance(traits)[:, None], report
    )
    return vectors, measure.percent(distance[:, 0]), cut, tokens


def embed_with_texts(
    encoder: Encoder,
    examples: Sequence[Example],
    side: Side,
    measure: Familiarity,
    report: Callable[[int], None] = lambda rows: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[bool], list[int]]:
    """As `embed_familiarly`; in third place each example's text vector, (N, h) float32 of unit length.

    They come out of the same forward pass.
    """
    reading = encoder.reading

    def read(traits: torch.Tensor) -> torch.Tensor:
        return torch.cat([measure.distance(traits)[:, None], text_vectors(traits, reading)], dim=1)

    vectors, found, cut, tokens = encoder.embed_with_traits(examples, side, read, report)
    return vectors, measure.percent(found[:, 0]), found[:, 1:], cut, tokens


class EmbedWork:
    """Holds the encoder and embeds units of the corpus, and of the sampled queries.

    Args:
        encoder: where the distilled encoder lies.
        corpus: the table whose units are files of the corpus; those of others are tables of queries.
    """

    def __init__(self, settings: PipelineSettings, encoder: str, corpus: str, threads: int) -> None:
        self._settings = settings
        self._encoder = load_student(settings, encoder, prepare_device(threads))
        self._familiarity = load_familiarity(self._encoder)
        self._columns = settings.corpus.columns
        self._corpus = corpus
        self._keeps_texts = settings.keeps_texts

    @cached_property
    def _known(self) -> Mapping[str, np.ndarray]:
        """Read by the worker that has a unit of queries, which are few."""
        return of_gradients(self._settings, self._encoder)

    def read(self, unit: Unit) -> Any:
        if unit.table == self._corpus:
            return read_pieces(unit, self._columns.names)
        return read_rows(unit)

    def process(self, unit: Unit, rows: Any, report: Callable[[int], None]) -> Output:
        examples: list[Example] = []
        unusable: list[Unusable] = []
        if unit.table == self._corpus:
            for piece, cells in rows:
                used, refused = examples_from_cells(cells, self._columns, relative=piece.relative)
                examples += used
                unusable += refused
                report(piece.left_out(len(cells)))
        else:
            examples = from_table(rows)
        side: Side = "pool" if unit.table == self._corpus else "queries"
        asked = (self._encoder, examples, side, self._familiarity[side], report)
        texts: np.ndarray | None = None
        if self._keeps_texts:
            vectors, familiarity, texts, cut, tokens = embed_with_texts(*asked)
        else:
            vectors, familiarity, cut, tokens = embed_familiarly(*asked)
        counters = {f"truncated_{unit.table}": sum(cut), "tokens": sum(tokens)}
        if side == "queries":
            vectors, counters["queries_by_gradient"] = with_gradients(vectors, examples, self._known)
        good = np.flatnonzero(np.isfinite(vectors).all(1)).tolist()
        not_finite = sorted(set(range(len(examples))) - set(good))
        unusable += [
            Unusable(examples[i].example_id, examples[i].source, "vector is not finite") for i in not_finite
        ]
        # The queries are few, and are kept as they were searched for.
        kind = self._settings.embed.vectors if side == "pool" else "float16"
        column, steps = vector_column(vectors[good], kind)
        columns = {
            "example_id": [examples[i].example_id for i in good],
            "source": [examples[i].source for i in good],
            "embedding": column,
            "familiarity": familiarity[good],
        }
        if texts is not None:
            columns["text_embedding"], _ = vector_column(texts[good], "float16")
        text_dimensions = None if texts is None else texts.shape[1]
        schema = schemas.embeddings(
            self._encoder.dimensions,
            kind,
            steps,
            text_dimensions=text_dimensions,
            foremost=self._settings.embed.dimensions,
        )
        table = pa.table(columns, schema=schema)
        return Output(
            {unit.table: table},
            rows_in=len(examples) + len(unusable) - len(not_finite),
            rows_out=len(good),
            quarantine=quarantine_table("embed", [(u.example_id, u.source, u.reason) for u in unusable]),
            counters=counters,
        )
