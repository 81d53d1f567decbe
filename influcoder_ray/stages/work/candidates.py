"""Candidates: the rows of a part whose score is above the bar, with their content and tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.columns import examples_from_cells
from influcoder_ray.examples.tokenizer import load_tokenizer
from influcoder_ray.examples.tokens import loss_tokens, resolve_template
from influcoder_ray.stages import embed
from influcoder_ray.stages.folders import at_hand
from influcoder_ray.stages.parts import part_of, step_id
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import vector_column, vector_matrix
from influcoder_ray.tables.cells import Cells, read_cells
from influcoder_ray.tables.state import Output
from influcoder_ray.tables.units import Unit

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class _Rows:
    scored: pa.Table
    cells: Cells
    vectors: pa.Table | None


class CandidateWork:
    """Reads again what the rows above the bar say.

    Args:
        scores, scored_in: the table of scores and the step that wrote it.
        bars: path of the table with each ranking's bar; a score on it counts as above.
        candidates: what the result is called.
        compared: whether candidates' vectors are needed.
        fingerprint: of the stage.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        scores: str,
        scored_in: str,
        bars: str,
        candidates: str,
        compared: bool,
        fingerprint: str,
    ) -> None:
        self._settings = settings
        self._scores, self._scored_in, self._fingerprint = scores, scored_in, fingerprint
        self._candidates = candidates
        self._compared = compared
        with (settings.root / bars).open() as stream:
            self._bars = pq.ParquetFile(stream).read()["score"].to_numpy()
        self._names = settings.corpus.columns.names
        self._token_column = settings.select.token_column
        if self._token_column is None:
            spec = at_hand(settings.model, weights=False)
            self._tokenizer = load_tokenizer(
                spec.path, setting="model.path", trust_remote_code=spec.trust_remote_code
            )
            self._template = resolve_template(self._tokenizer, spec.template)

    def read(self, unit: Unit) -> _Rows:
        name = step_id(part_of(unit), self._scored_in, self._fingerprint)
        with (self._settings.root / self._scores / f"{name}.parquet").open() as stream:
            scored = pq.ParquetFile(stream).read()
        # In a common ranking an aim only says which query is near; in turns each has a bar of its own.
        bars = self._bars[scored["aim"].to_numpy()] if len(self._bars) > 1 else self._bars[0]
        scored = scored.filter(pa.array(scored["score"].to_numpy() >= bars))
        if not scored.num_rows:
            return _Rows(scored, Cells([], {}), None)
        extra = [] if self._token_column is None else [self._token_column]
        cells = read_cells(unit, list(dict.fromkeys([*self._names, *extra])))
        if not self._compared:
            return _Rows(scored, cells, None)
        with (self._settings.root / embed.CORPUS / f"{part_of(unit)}.parquet").open() as stream:
            return _Rows(scored, cells, pq.ParquetFile(stream).read(columns=["example_id", "embedding"]))

    def process(self, unit: Unit, rows: _Rows, report: Callable[[int], None]) -> Output:
        count = rows.scored.num_rows
        if not count:
            return Output({}, rows_in=0, rows_out=0)
        numbers = rows.scored["row"].to_numpy()
        different = np.unique(numbers)
        examples = self._examples(unit, rows.cells, different)
        tokens = self._tokens(unit, rows.cells, different, examples)
        places = np.searchsorted(different, numbers)
        columns: dict[str, Any] = {
            "part": [part_of(unit)] * count,
            **{name: rows.scored[name] for name in schemas.SCORES.names},
            "source": unit.sources(numbers.tolist()),
            "content_hash": [examples[place].content_hash for place in places.tolist()],
            "tokens": np.array(tokens, dtype=np.int32)[places],
        }
        dimensions = None
        if rows.vectors is not None:
            found = pc.index_in(rows.scored["example_id"], rows.vectors["example_id"])
            # Candidates of many files meet, whose int8 are not the same numbers.
            columns["embedding"], _ = vector_column(vector_matrix(rows.vectors)[found.to_numpy()], "float16")
            dimensions = columns["embedding"].type.list_size
        table = pa.table(columns, schema=schemas.candidates(dimensions))
        return Output(
            {self._candidates: table}, rows_in=0, rows_out=0, counters={"candidates": len(different)}
        )

    def _examples(self, unit: Unit, cells: Cells, numbers: np.ndarray) -> list[Example]:
        chosen = cells.at(numbers.tolist())
        examples, unusable = examples_from_cells(chosen, self._settings.corpus.columns, relative="")
        if unusable:
            (source,) = unit.sources([int(unusable[0].source.removeprefix(":"))])
            raise RuntimeError(f"{source} is not as it was embedded: {unusable[0].reason}")
        return examples

    def _tokens(
        self, unit: Unit, cells: Cells, numbers: np.ndarray, examples: Sequence[Example]
    ) -> list[int]:
        if self._token_column is not None:
            given = list(cells.at(numbers.tolist())[self._token_column])
            for source, value in zip(unit.sources(numbers.tolist()), given, strict=True):
                if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                    raise UserError(
                        f"select.token_column: {self._token_column!r} of {source} is "
                        f"{value!r}, not a number of tokens"
                    )
            return given
        counts: list[int] = []
        for start in range(0, len(examples), _ROWS_AT_ONCE):
            some = loss_tokens(
                examples[start : start + _ROWS_AT_ONCE],
                self._tokenizer,
                max_tokens=self._settings.model.max_tokens,
                template=self._template,
            )
            counts.extend(len(tokens.ids) for tokens in some)
        return counts
