"""Candidates by text beside the encoder's: their vectors, their search, their re-ranking, on tiny models."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from material import file_hashes
from rich.console import Console

from influcoder_ray import Attributor, pipeline
from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.stages import attribute, embed, rerank
from influcoder_ray.stages.work.page import contents

QUIET = Console(quiet=True)
MakeSettings = Callable[..., PipelineSettings]
STAGES = ("embed", "attribute", "rerank")
# What the stages from `embed` on have written.
LATER = ("embeddings", "query_embeddings", "attributions", "group_influence", "_state/embed")
ASKED = {"candidates": 3, "text_candidates": 4}


def rows_of(settings: PipelineSettings, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(settings.output) / name).to_pylist()
    return rows


def distilled(finished: PipelineSettings, output: Path) -> Path:
    """A copy of the finished run in which nothing is embedded yet."""
    shutil.copytree(finished.output, output)
    for name in (*LATER, "_state/attribute"):
        shutil.rmtree(output / name)
    return output


@pytest.fixture(scope="module")
def both(
    finished: PipelineSettings, make_settings: MakeSettings, tmp_path_factory: pytest.TempPathFactory
) -> PipelineSettings:
    """The settings of a run whose candidates come from both sides; its output is read only."""
    output = distilled(finished, tmp_path_factory.mktemp("both") / "run")
    settings = make_settings(output, rerank=ASKED)
    pipeline.run(settings, stages=STAGES, console=QUIET)
    return settings


def test_a_texts_vector_is_the_mean_of_the_encoders_last_states_and_changes_nothing_beside_it(
    finished: PipelineSettings, both: PipelineSettings
) -> None:
    """Prevents the vectors of another layer or text, and a setting that moves the encoder's own vectors."""
    encoder = Encoder.load(
        both.encoder.model_copy(update={"path": str(Path(both.output) / "encoder")}), torch.device("cpu")
    )
    texts = {row["id"]: row for row in pq.read_table(both.corpus.path).to_pylist()}
    plain = {row["example_id"]: row for row in rows_of(finished, "embeddings")}
    for row in rows_of(both, "embeddings"):
        vector = np.array(row["text_embedding"], dtype=np.float64)
        text = texts[row["example_id"]]
        windows, _ = encoder.windows([Example("", text["prompt"], text["response"], "")])
        with torch.inference_mode():
            states = encoder.model(input_ids=torch.tensor(windows)).last_hidden_state[0].double().mean(0)
        np.testing.assert_allclose(vector, states / states.norm(), atol=1e-3)
        assert {name: row[name] for name in plain[row["example_id"]]} == plain[row["example_id"]]


def test_text_neighbours_are_those_of_one_full_sort(both: PipelineSettings) -> None:
    """Prevents neighbours by the encoder's vectors, of one shard alone, or under another query's id."""
    corpus, queries = rows_of(both, "embeddings"), rows_of(both, "query_embeddings")
    table = rows_of(both, "text_neighbours")
    assert len(table) == 4 * len(queries)
    matrix = np.array([row["text_embedding"] for row in corpus], dtype=np.float64)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    for query in queries:
        vector = np.array(query["text_embedding"], dtype=np.float64)
        scores = matrix @ vector / np.linalg.norm(vector)
        order = sorted(range(len(corpus)), key=lambda i: (-round(scores[i], 6), corpus[i]["example_id"]))[:4]
        found = [row for row in table if row["query_id"] == query["example_id"]]
        assert [row["rank"] for row in found] == [1, 2, 3, 4]
        np.testing.assert_allclose([row["score"] for row in found], scores[order], atol=1e-5)
        by_id = {row["example_id"]: row for row in corpus}
        for row in found:
            held = by_id[row["example_id"]]
            assert (row["source"], row["familiarity"]) == (held["source"], held["familiarity"])


def test_candidates_of_both_sides_are_re_ranked_together(both: PipelineSettings) -> None:
    """Prevents a side from being forgotten, a gradient from being paid for twice, and a lost place."""
    by_encoder = [row for row in rows_of(both, "attributions") if row["rank"] <= 3]
    near, table = rows_of(both, "text_neighbours"), rows_of(both, "reranked")
    every = {row["example_id"] for row in (*by_encoder, *near)}
    assert every > {row["example_id"] for row in by_encoder}
    totals = rerank.state(both.root).totals() or {}
    assert totals["contents"] == len(every)
    ranks = {(row["query_id"], row["example_id"]): row["rank"] for row in by_encoder}
    from_texts = 0
    for query_id in {row["query_id"] for row in by_encoder}:
        found = [row for row in table if row["query_id"] == query_id]
        own = {row["example_id"] for row in (*by_encoder, *near) if row["query_id"] == query_id}
        assert len(found) == len(own)
        scores = [row["score"] for row in found]
        assert scores == sorted(scores, reverse=True)
        for row in found:
            assert row["example_id"] in every
            assert row["encoder_rank"] == ranks.get((query_id, row["example_id"]))
            from_texts += row["encoder_rank"] is None
    assert from_texts


def test_the_report_says_where_candidates_come_from(both: PipelineSettings) -> None:
    """Prevents a report that breaks on an example which the encoder has not found, or hides its origin."""
    from influcoder_ray.report.sections.queries import order_note

    shown = contents(both)
    note = order_note(shown)
    assert "the encoder's 3 best and the 4 examples with the most similar text of each query" in note
    assert any(it.percentile is None for query in shown.queries for it in query.attributions)


def test_a_question_is_re_ranked_among_the_candidates_of_both_sides(both: PipelineSettings) -> None:
    """Prevents `explain --rerank` from looking at the encoder's best alone where texts could be asked."""
    attributor = Attributor.open(both.output)
    query = rows_of(both, "text_neighbours")[0]["query_id"]
    asked = next(row for row in pq.read_table(both.queries.path).to_pylist() if row["id"] == query)
    rows = attributor.rerank(asked["prompt"], asked["response"], candidates=4, k=8).to_pylist()
    near = {row["example_id"] for row in rows_of(both, "text_neighbours") if row["query_id"] == query}
    by_encoder = {
        row["example_id"]
        for row in rows_of(both, "attributions")
        if row["query_id"] == query and row["rank"] <= 4
    }
    assert {row["example_id"] for row in rows} == near | by_encoder
    assert {row["example_id"] for row in rows if row["encoder_rank"] is None} == near - by_encoder
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_a_run_without_text_vectors_refuses_the_setting_and_stays_as_it_is(
    finished: PipelineSettings, make_settings: MakeSettings
) -> None:
    """Prevents a search by vectors that are not there, and minutes of work before that shows."""
    before = file_hashes(finished.output)
    with pytest.raises(UserError, match=r"rerank\.text_candidates is absent there"):
        pipeline.run(make_settings(finished.output, rerank=ASKED), console=QUIET)
    assert file_hashes(finished.output) == before
    # Without the setting, an older run is what it was.
    for stage in (embed, attribute):
        assert "rerank" not in stage.plan(finished).fingerprint.fields
    plain = rerank.plan(make_settings(finished.output, rerank={"candidates": 3})).fingerprint
    assert plain.fields["rerank"] == {"candidates": 3}


@pytest.mark.long
def test_three_workers_write_the_bytes_of_one(
    finished: PipelineSettings, both: PipelineSettings, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Prevents vectors, neighbours or an order that depend on who did which unit."""
    workers = {stage: {"cpus": 1, "max": 3} for stage in ("sketch", "embed", "attribute")}
    settings = make_settings(distilled(finished, tmp_path / "run"), rerank=ASKED, workers=workers)
    pipeline.run(settings, stages=STAGES, console=QUIET)
    tables = ("embeddings/", "query_embeddings/", "attributions/", "text_neighbours/", "reranked/")
    one, three = (
        {name: found for name, found in file_hashes(output).items() if name.startswith(tables)}
        for output in (both.output, settings.output)
    )
    assert one == three
    assert len(one) > len(tables)
