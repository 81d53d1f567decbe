"""Scoring: how much each row of the corpus influences the queries that something is chosen by."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influcoder_ray.attribution.aims import By, aim_vectors, contrast, influence
from influcoder_ray.attribution.selection import score_bins
from influcoder_ray.attribution.specs import LabelSpec
from influcoder_ray.attribution.topk import rank_shard
from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages import embed
from influcoder_ray.stages.aims import Aims, as_text, column_by_id
from influcoder_ray.stages.parts import part_of
from influcoder_ray.stages.work.search import query_rows
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import vector_matrix
from influcoder_ray.tables.cells import Cells, read_cells
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.records import schema_of_lines
from influcoder_ray.tables.state import Output
from influcoder_ray.tables.units import Unit


@dataclass(frozen=True)
class ScoreTables:
    """The tables that scoring writes for each part, below `_state/<stage>/`."""

    scores: str
    counts: str
    labelled: str
    types: str

    @staticmethod
    def of(stage: str) -> "ScoreTables":
        return ScoreTables(*(f"_state/{stage}/{name}" for name in ("scores", "counts", "labelled", "types")))

    @property
    def names(self) -> tuple[str, ...]:
        return self.scores, self.counts, self.labelled, self.types


@dataclass(frozen=True)
class Scoring:
    """How rows are scored.

    Attributes:
        depth: of a round robin: so many best rows of each aim are kept, and no others; None for a common
            score of all rows, and counts of it.
        weight: of the protected queries' influence, where the aims name any.
        labels: where the labelled rows are.
        column: of the vectors that are compared.
    """

    aims: Aims
    by: By = "mean"
    depth: int | None = None
    weight: float = 1.0
    labels: LabelSpec | None = None
    column: str = "embedding"


@dataclass(frozen=True)
class _Rows:
    vectors: pa.Table
    labels: Cells | None
    types: pa.Schema | None


class ScoreWork:
    """Scores the parts of a corpus from their vectors; of JSON Lines also tells the columns' types."""

    def __init__(self, settings: PipelineSettings, scoring: Scoring, tables: ScoreTables) -> None:
        self._settings = settings
        self._scoring = scoring
        self._tables = tables
        rows = query_rows(
            embed.state(settings.root).data_files(embed.QUERIES), ["example_id", scoring.column]
        )
        places = {name: place for place, name in enumerate(rows["example_id"].to_pylist())}
        vectors = vector_matrix(rows, scoring.column)
        aims = scoring.aims
        self._aims = aim_vectors(vectors, [[places[name] for name in them] for them in aims.members])
        self._queries = vectors[[places[name] for name in aims.ids]]
        self._protected = vectors[[places[name] for name in aims.protected]]

    @cached_property
    def _labels_of_ids(self) -> Mapping[str, str | None]:
        labels = self._scoring.labels
        assert labels is not None
        assert labels.path is not None
        files = find_data_files(labels.path, setting="filter.labels.path")
        return column_by_id(files, labels.id, labels.column, "filter.labels")

    def read(self, unit: Unit) -> _Rows:
        with (self._settings.root / embed.CORPUS / f"{part_of(unit)}.parquet").open() as stream:
            vectors = pq.ParquetFile(stream).read(["example_id", "source", self._scoring.column])
        labels = self._scoring.labels
        of_corpus = labels is not None and labels.path is None
        return _Rows(
            vectors,
            read_cells(unit, [labels.column]) if labels is not None and of_corpus else None,
            schema_of_lines(unit) if unit.is_lines else None,
        )

    def process(self, unit: Unit, rows: _Rows, report: Callable[[int], None]) -> Output:
        ids = rows.vectors["example_id"].to_numpy()
        numbers = unit.numbers(rows.vectors["source"].to_pylist())
        vectors = vector_matrix(rows.vectors, self._scoring.column)
        tables: dict[str, pa.Table] = {}
        if self._scoring.depth is not None:
            best = rank_shard(self._aims, vectors, ids, self._scoring.depth)
            aims, kept = best.scores.shape
            places, scores = best.rows.ravel(), best.scores.ravel()
            aim = np.repeat(np.arange(aims, dtype=np.int32), kept)
        else:
            scores, aim = influence(self._queries, self._aims, vectors, self._scoring.by)
            places = np.arange(len(ids))
            if len(self._protected):
                protection, _ = influence(self._protected, self._protected, vectors, self._scoring.by)
                scores = contrast(scores, protection, self._scoring.weight)
            bins, counts = np.unique(score_bins(scores), return_counts=True)
            tables[self._tables.counts] = pa.table(
                {"bin": bins.astype(np.int32), "count": counts}, schema=schemas.SCORE_COUNTS
            )
        tables[self._tables.scores] = pa.table(
            {"row": numbers[places], "example_id": ids[places], "score": scores, "aim": aim},
            schema=schemas.SCORES,
        )
        if self._scoring.labels is not None:
            tables[self._tables.labelled] = self._labelled(unit, rows, ids, numbers, scores)
        if rows.types is not None:
            tables[self._tables.types] = rows.types.empty_table()
        return Output(tables, rows_in=len(ids), rows_out=len(ids))

    def _labelled(
        self, unit: Unit, rows: _Rows, ids: np.ndarray, numbers: np.ndarray, scores: np.ndarray
    ) -> pa.Table:
        spec = self._scoring.labels
        assert spec is not None
        if rows.labels is None:
            found = [self._labels_of_ids.get(name) for name in ids.tolist()]
        else:
            found = [as_text(cell) for cell in rows.labels.at(numbers.tolist())[spec.column]]
        known = [place for place, label in enumerate(found) if label is not None]
        unwanted = [str(found[place]).strip().lower() in spec.unwanted for place in known]
        return pa.table({"score": scores[known], "unwanted": unwanted}, schema=schemas.LABELLED)
