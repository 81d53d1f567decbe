"""The names by which methods and their figures go on the page."""

from collections.abc import Iterable, Mapping
from typing import Any

from influcoder_ray.report.blocks import Cell
from influcoder_ray.report.contents import Measured
from influcoder_ray.report.wording import MISSING, count, decimal, spoken

METHODS = {
    "encoder": "Encoder, trained",
    "encoder_by_text": "Encoder, trained, of queries knowing the text alone",
    "untrained_encoder": "Encoder, before training",
    "tfidf": "TF-IDF",
    "bm25": "BM25",
    "random": "Random order",
}
FIGURES = {
    "per_query_rho": "Rank agreement, per query",
    "aggregated_rho": "Rank agreement, aggregated",
    "recall_at_10": "Recall at 10",
}
HIGHER_IS_BETTER = ("rho", "recall", "auprc", "precision", "mrr", "lds")


def method_name(key: str) -> str:
    return METHODS.get(key, spoken(key))


def figure_name(key: str) -> str:
    return FIGURES.get(key, spoken(key))


def known_first(names: Iterable[str]) -> list[str]:
    """The names of figures, those that have a heading of their own first."""
    given = list(names)
    return [name for name in FIGURES if name in given] + [name for name in given if name not in FIGURES]


def figure_cell(found: Measured | None, *, best: bool = False) -> Cell:
    """A figure with its spread; a dash where there is none."""
    if found is None:
        return Cell(MISSING)
    return Cell(decimal(found.mean), "" if found.std is None else decimal(found.std), best)


def sample_size(evaluation: Mapping[str, Any]) -> str:
    """On what the quality figures were measured."""
    queries, pool = evaluation.get("queries"), evaluation.get("pool")
    return f"{count(queries)} test queries by {count(pool)} test pool examples"
