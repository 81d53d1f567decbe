"""A sound report that calls for no warning, for each test to change in one place."""

import html
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from influcoder_ray.report.contents import (
    Attribution,
    EpochRow,
    QueryPage,
    ReportContents,
    StageRow,
    Truncation,
    Unfamiliar,
)

MakeContents = Callable[..., ReportContents]


def _attributions(rows: int, words: str) -> tuple[Attribution, ...]:
    return tuple(
        Attribution(
            rank=place + 1,
            example_id=f"doc-{place}",
            score=0.9 - 0.05 * place,
            percentile=100.0 - place / 100,
            source=f"corpus/part-{place}.parquet:{place}",
            prompt=f"Prompt {place} about {words}",
            response=f"Response {place} about {words}",
        )
        for place in range(rows)
    )


def _evaluation() -> dict[str, Any]:
    def figures(aggregated: float, per_query: float, recall: float) -> dict[str, dict[str, float]]:
        return {
            "aggregated_rho": {"mean": aggregated, "std": 0.02},
            "per_query_rho": {"mean": per_query, "std": 0.01},
            "recall_at_10": {"mean": recall, "std": 0.03},
        }

    methods = {
        "encoder": figures(0.787, 0.741, 0.52),
        "untrained_encoder": figures(0.221, 0.153, 0.18),
        "tfidf": figures(-0.041, 0.066, 0.14),
        "bm25": figures(0.031, 0.082, 0.15),
        "random": figures(0.004, -0.0002, 0.07),
    }
    encoder = methods["encoder"]
    return {
        "methods": methods,
        "leads": {
            rival: {
                name: {"mean": encoder[name]["mean"] - value["mean"], "std": 0.015, "share_ahead": 1.0}
                for name, value in values.items()
            }
            for rival, values in methods.items()
            if rival != "encoder"
        },
        "queries": 60,
        "pool": 150,
        "seeds": [7],
        "chosen_epochs": [2],
        "split_audit": {
            "disjoint": True,
            "shared_contents": 0,
            "sizes": {"pool/test": 150},
            "near_duplicates": {"queries/test": 0, "pool/test": 3},
        },
        "sketch_fidelity": {
            "examples": 12,
            "pairs": 66,
            "mean_absolute_error": 0.007,
            "rho": 0.987,
            "width": 4096,
        },
        "spread": "standard deviation over bootstrap draws of the queries.",
        "agreement_by_familiarity": [
            {"from": 0.7, "to": 48.2, "pool": 75, "per_query_rho": {"mean": 0.61, "std": 0.02}},
            {"from": 48.9, "to": 99.3, "pool": 75, "per_query_rho": {"mean": 0.74, "std": 0.01}},
        ],
        "agreement_by_dimensions": [
            {"dimensions": n, "per_query_rho": {"mean": rho}, "recall_at_10": {"mean": recall}, "loss": {}}
            for n, rho, recall in ((128, 0.713, 0.402), (64, 0.711, 0.365))
        ],
    }


@pytest.fixture(scope="session")
def plain() -> Callable[[str], str]:
    """What can be read of a page's HTML, on one line."""
    return lambda page: " ".join(
        html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.S)).split()
    )


@pytest.fixture(scope="session")
def make_contents() -> MakeContents:
    """Sound contents with the given fields replaced; a new evaluation each time, free to be changed."""
    random = np.random.default_rng(5)
    exact = random.normal(size=(12, 20)) * 0.1
    predicted = exact + random.normal(size=exact.shape) * 0.05
    counts, edges = np.histogram(random.normal(size=4000) * 0.1, bins=64, range=(-1, 1))

    def make(**changes: Any) -> ReportContents:
        sound = ReportContents(
            title="What taught the model",
            influcoder_version="1.2.3",
            settings={"teacher": {"model": "a-model", "rank": 8}, "seed": 7},
            evaluation=_evaluation(),
            unfamiliar=Unfamiliar(
                below=5.0,
                rows=41,
                queries=1,
                all_queries=24,
                answers=13,
                all_answers=480,
                held_out_pool=150,
                held_out_queries=60,
            ),
            epochs=(
                EpochRow(0, None, 0.15, 0.22, False),
                EpochRow(1, 0.9, 0.6, 0.66, False),
                EpochRow(2, 0.5, 0.74, 0.79, True),
            ),
            predicted=predicted,
            exact=exact,
            score_histogram=(counts, edges),
            best_scores=(0.9, 0.9),
            queries=(
                QueryPage("query-a", "test", "How do I sort?", "With sorted.", _attributions(3, "sorting")),
                QueryPage("query-b", "train", "How do I read?", "With open.", _attributions(2, "reading")),
            ),
            group=_attributions(2, "everything"),
            least=_attributions(2, "nothing"),
            stages=(
                StageRow("sample", 1.5, 1, 1000, 400, 0, 700.0, None),
                StageRow("sketch", 812.0, 4, 400, 398, 2, 1.3, 148.0),
            ),
            truncation=(Truncation("teacher", 400, 4, 128), Truncation("student", 1000, 9, 128)),
            quarantine_reasons={"gradient is not finite": 2},
            corpus_rows=998,
        )
        return replace(sound, **changes)

    return make
