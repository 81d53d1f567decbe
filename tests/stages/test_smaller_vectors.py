"""Search, selection and filtering of corpora whose vectors are kept in each way, without Ray."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import corpus_rows, in_this_process, made_up_run, query_rows, run, vectors_of, write_corpus

from influcoder_ray.attribution.cosine import cosines
from influcoder_ray.attribution.group import group_scores
from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages import attribute

KINDS = ["float16", "int8"]
IDS = [row["id"] for row in corpus_rows()]
QUERIES = vectors_of(len(query_rows()), 5)


@pytest.fixture(scope="module")
def embedded(
    make_settings: Callable[..., PipelineSettings], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., PipelineSettings]:
    """Settings of a run that is finished up to `embed`, for each kind of vectors."""
    folder = tmp_path_factory.mktemp("kinds")
    pq.write_table(pa.Table.from_pylist(query_rows()), folder / "queries.parquet")
    write_corpus(folder, "parquet")
    columns = {"id": "id", "prompt": "prompt", "response": "response"}

    def make(kind: str, **groups: Any) -> PipelineSettings:
        data = {
            "corpus": {"path": str(folder / "corpus-parquet"), "columns": columns},
            "queries": {"path": str(folder / "queries.parquet"), "columns": columns},
            "embed": {"rows_per_unit": 20, "vectors": kind},
        }
        return make_settings(folder / f"run-{kind}", **(data | groups))

    for kind in KINDS:
        made_up_run(make(kind))
    return make


def kept(settings: PipelineSettings) -> np.ndarray:
    """The corpus's vectors (N, d) in the order of `IDS`, from what its files say of themselves."""
    found = {}
    for path in (Path(settings.output) / "embeddings").glob("*.parquet"):
        table = pq.read_table(path)
        if settings.embed.vectors == "float16":
            rows = np.array(table["embedding"].to_pylist(), np.float32)
        else:
            scale, offset = (
                np.frombuffer(base64.b64decode(table.schema.metadata[key]), "float32")
                for key in (b"embedding_scale", b"embedding_offset")
            )
            cells = [np.frombuffer(cell, "int8") for cell in table["embedding"].to_pylist()]
            rows = np.stack(cells).astype(np.float32) * scale + offset
        found |= dict(zip(table["example_id"].to_pylist(), rows, strict=True))
    return np.stack([found[name] for name in IDS])


@pytest.mark.parametrize("kind", KINDS)
def test_attributions_are_those_of_one_full_sort_of_what_is_kept(
    embedded: Callable[..., PipelineSettings], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents bytes read as other numbers, a score of signs alone, and a scale that is left out."""
    in_this_process(monkeypatch)
    settings = embedded(kind, attribute={"top_k": 9})
    run(settings, "attribute")
    found = pq.read_table(Path(settings.output) / "attributions").to_pylist()
    vectors = kept(settings)
    for place, query in enumerate(QUERIES.astype(np.float32)):
        scores = cosines(np.repeat(query[None], len(IDS), 0), vectors)
        best = sorted(range(len(IDS)), key=lambda i, of=scores: (-of[i], IDS[i]))[:9]  # type: ignore[misc]
        rows = [row for row in found if row["query_id"] == f"q{place}"]
        assert [row["example_id"] for row in rows] == [IDS[i] for i in best]
        assert [row["score"] for row in rows] == [float(scores[i]) for i in best]
        assert all(row["familiarity"] == 50 and row["source"].count(":") == 1 for row in rows)
    group = pq.read_table(Path(settings.output) / attribute.GROUP).to_pylist()
    scores = group_scores(QUERIES, vectors)
    assert {row["example_id"]: row["score"] for row in group} == dict(zip(IDS, scores.tolist(), strict=True))


def test_selection_and_filter_read_smaller_vectors(
    embedded: Callable[..., PipelineSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a traceback in what reads embeddings besides the search, near-duplicates among it."""
    in_this_process(monkeypatch)
    settings = embedded("int8", select={"count": 12, "near": 0.999}, filter={"count": 5})
    run(settings, "select", "filter")
    scores = group_scores(QUERIES, kept(settings))
    rows = pq.read_table(Path(settings.output) / "selected").to_pylist()
    assert [row["influcoder_score"] for row in rows] == [float(scores[IDS.index(row["id"])]) for row in rows]
    assert len(rows) == 12
    assert pq.read_table(Path(settings.output) / "removed").num_rows == 5


def test_int8_vectors_are_the_vectors(embedded: Callable[..., PipelineSettings]) -> None:
    """Prevents bytes that only this package understands, and a search of something else than the corpus."""
    found = kept(embedded("int8"))
    truth = vectors_of(len(IDS), 6).astype(np.float32)
    assert cosines(found, truth).min() > 0.9999
