"""What a report is made of: plain values, filled by the report stage and read by the page."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from influcoder_ray.report.spans import Span


@dataclass(frozen=True)
class Attribution:
    """One example of the corpus and where it stands.

    `rank` counts from 1. `score` is a cosine in [-1, 1]; higher means more influence towards the
    query. `percentile` is the share of the other rows of the corpus that rank below, in percent, 0 to 100.
    `familiarity`, in percent too, says how near the example lies to what the encoder was trained on.

    `prompt_spans` and `response_spans` say what parts of the texts add to the influence, where that was
    computed: in characters of `prompt` and of `response`, all in one unit.

    Where candidates were re-ranked, rank and score are those of exact influence (a score of NaN: it has
    none), and `encoder_rank` is the place that the encoder gave, to which the percentile belongs. Both are
    None for a candidate of other queries, which the search has not kept for this one.
    """

    rank: int
    example_id: str
    score: float
    percentile: float | None
    source: str
    prompt: str
    response: str
    encoder_rank: int | None = None
    familiarity: float | None = None
    unfamiliar: bool = False
    prompt_spans: tuple[Span, ...] = ()
    response_spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class QueryFamiliarity:
    """How familiar a query is to the encoder, and how many of the examples kept for it are not.

    `familiarity` is in per cent. `answers` counts all examples kept for the query, shown or not.
    """

    familiarity: float
    unfamiliar: bool
    answers: int
    unfamiliar_answers: int


@dataclass(frozen=True)
class QueryPage:
    """One query and its K most influential examples, best first."""

    query_id: str
    split: str
    prompt: str
    response: str
    attributions: tuple[Attribution, ...]
    familiarity: QueryFamiliarity | None = None


@dataclass(frozen=True)
class Reranked:
    """How the best were ordered anew: `candidates` of each query, `contents` different ones in all, and the
    gradients that were computed for them; the others' were in the sample. `text_candidates` of each query are
    those whose texts are most similar to its own, which come beside the encoder's."""

    candidates: int
    contents: int
    gradient_evaluations: int
    text_candidates: int = 0


@dataclass(frozen=True)
class Unfamiliar:
    """How much has a familiarity below `below` per cent.

    Of the corpus's rows, of all queries, and of all answers: the examples kept for each query. The limit
    was placed by `held_out_pool` and `held_out_queries` texts.
    """

    below: float
    rows: int
    queries: int
    all_queries: int
    answers: int
    all_answers: int
    held_out_pool: int
    held_out_queries: int


@dataclass(frozen=True)
class StageRow:
    """What one stage did. A rate is of one worker while it computes; None where it was not measured."""

    name: str
    seconds: float
    units: int
    rows_in: int
    rows_out: int
    rows_quarantined: int
    rows_per_second: float | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class EpochRow:
    """The state after one epoch of training. Epoch 0 is the encoder before training: it has no loss."""

    epoch: int
    loss: float | None
    validation_per_query_rho: float
    validation_aggregated_rho: float
    chosen: bool


@dataclass(frozen=True)
class Truncation:
    """How many examples lost tokens to one model's window. `who` is "teacher" or "student"."""

    who: str
    examples: int
    truncated: int
    max_tokens: int

    @property
    def share(self) -> float:
        """The truncated share of the examples, 0 to 1; 0 where there are no examples."""
        return self.truncated / self.examples if self.examples else 0.0


@dataclass(frozen=True)
class Measured:
    """A figure with its spread; `std` is None where the spread was not measured."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Lead:
    """By how much the encoder is ahead of a rival on the same test queries.

    `share_ahead`, 0 to 1, is the share of the bootstrap resamples in which it is ahead; `seeds` the lead's
    mean and spread over training seeds where there are several.
    """

    mean: float
    std: float | None
    share_ahead: float | None
    seeds: Measured | None


@dataclass(frozen=True)
class Quarantined:
    """The largest share of rows that one stage set aside. `stage` is empty where no stage is known."""

    share: float
    stage: str
    rows: int


@dataclass(frozen=True, eq=False)
class ReportContents:
    """All that the page shows.

    `evaluation` is what `evaluation.json` holds. `unfamiliar` counts what lies far from all that the
    encoder was trained on. `predicted` and `exact` are (Q, P): cosines of the
    encoder's vectors and of the sketched gradients, for the test queries and the test pool.
    `score_histogram` is counts (B,) and edges (B + 1,) of the scores of all queries on the whole
    corpus, and `best_scores` the highest of each query, on the page or not. `group` and `least` hold
    the most and the least influential examples on the whole query set, by mean cosine. `corpus_rows` counts
    the rows of the corpus that have a score. `reranked` is None where the queries' examples stand in the
    encoder's order. `listed` are further queries, which stand with their examples in the table of
    attributions alone; `unlisted` counts those that are nowhere on the page. `rows_left_out` counts the rows
    of corpus and queries that do not meet the conditions on them.

    Raises ValueError when `predicted` and `exact`, or counts and edges, do not fit together.
    """

    title: str
    influcoder_version: str
    settings: dict[str, Any]
    evaluation: dict[str, Any]
    unfamiliar: Unfamiliar
    epochs: tuple[EpochRow, ...]
    predicted: npt.NDArray[Any]
    exact: npt.NDArray[Any]
    score_histogram: tuple[npt.NDArray[Any], npt.NDArray[Any]]
    best_scores: tuple[float, ...]
    queries: tuple[QueryPage, ...]
    group: tuple[Attribution, ...]
    least: tuple[Attribution, ...]
    stages: tuple[StageRow, ...]
    truncation: tuple[Truncation, ...]
    quarantine_reasons: dict[str, int]
    corpus_rows: int
    reranked: Reranked | None = None
    listed: tuple[QueryPage, ...] = ()
    unlisted: int = 0
    rows_left_out: int = 0

    def __post_init__(self) -> None:
        if self.predicted.shape != self.exact.shape:
            raise ValueError(f"predicted is {self.predicted.shape}, exact is {self.exact.shape}")
        counts, edges = self.score_histogram
        if len(counts) and len(edges) != len(counts) + 1:
            raise ValueError(f"{len(counts)} counts need {len(counts) + 1} edges, not {len(edges)}")

    @property
    def rows_quarantined(self) -> int:
        """Rows set aside over the whole run."""
        return sum(self.quarantine_reasons.values())

    def worst_quarantine(self) -> Quarantined:
        """The stage that lost the largest share of its rows.

        The share is taken stage by stage, so that a small stage that loses much is not hidden by a
        large corpus, and a row that two stages refuse is not counted twice. Without stages it is the
        share of quarantined rows in all rows of the corpus.
        """
        rows = [
            Quarantined(row.rows_quarantined / row.rows_in, row.name, row.rows_quarantined)
            for row in self.stages
            if row.rows_in
        ]
        if rows:
            return max(rows, key=lambda row: row.share)
        total = self.corpus_rows + self.rows_quarantined
        return Quarantined(self.rows_quarantined / total if total else 0.0, "", self.rows_quarantined)

    def attributions(self) -> Iterator[Attribution]:
        """Every attribution that the page shows."""
        for query in self.queries:
            yield from query.attributions
        yield from self.group
        yield from self.least


def number(value: object) -> float | None:
    """`value` as a finite float; None for what is missing, not a number, or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    return float(value) if math.isfinite(value) else None


def section(evaluation: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of `evaluation.json` that is a mapping; empty where the evaluation lacks it."""
    found = evaluation.get(name)
    return found if isinstance(found, Mapping) else {}


def measured(evaluation: Mapping[str, Any], method: str, figure: str) -> Measured | None:
    """One method's figure; None where it is missing or undefined (a constant ranking has no rho)."""
    return _measured(section(section(evaluation, "methods"), method).get(figure))


def over_seeds(evaluation: Mapping[str, Any], figure: str) -> Measured | None:
    """The encoder's figure over training seeds; None where there is but one."""
    value = section(section(evaluation, "methods"), "encoder").get(figure)
    return _measured(value.get("seeds")) if isinstance(value, Mapping) else None


def lead(evaluation: Mapping[str, Any], rival: str, figure: str) -> Lead | None:
    """The encoder's lead over a rival in one figure; None where it is missing or undefined."""
    value = section(section(evaluation, "leads"), rival).get(figure)
    if not isinstance(value, Mapping) or (found := _measured(value)) is None:
        return None
    return Lead(found.mean, found.std, number(value.get("share_ahead")), _measured(value.get("seeds")))


def _measured(value: object) -> Measured | None:
    if isinstance(value, Mapping):
        mean, std = number(value.get("mean")), number(value.get("std"))
    else:
        mean, std = number(value), None
    return None if mean is None else Measured(mean, std)
