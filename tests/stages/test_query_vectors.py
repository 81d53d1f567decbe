"""The vectors of queries whose gradients are known."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file

from influcoder_ray.attribution.preconditioning import MixedHessian
from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.head import FOLDER
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.examples import Example
from influcoder_ray.stages.signals import fit_preconditioner
from influcoder_ray.stages.work.query_vectors import of_gradients, with_gradients


def _distilled(settings: PipelineSettings) -> Encoder:
    path = str(Path(settings.output) / "encoder")
    return Encoder.load(settings.encoder.model_copy(update={"path": path}), torch.device("cpu"))


def _by_id(settings: PipelineSettings, table: str) -> dict[str, np.ndarray]:
    rows = pq.read_table(Path(settings.output) / table).to_pylist()
    return {row["example_id"]: np.array(row["embedding"], np.float64) for row in rows}


def _unit_sketches(settings: PipelineSettings) -> dict[str, np.ndarray]:
    found = {}
    for row in pq.read_table(Path(settings.output) / "sketches/queries").to_pylist():
        sketch = np.frombuffer(row["sketch"], np.float16).astype(np.float64)
        found[row["example_id"]] = sketch / np.linalg.norm(sketch)
    return found


def test_a_sketched_querys_vector_is_its_gradient_along_the_heads_directions(
    finished: PipelineSettings,
) -> None:
    """Prevents a query from being predicted whose gradient is at hand, or from another query's gradient."""
    directions = load_file(Path(finished.output) / "encoder" / FOLDER / "head.safetensors")["directions"]
    stored, sketches = _by_id(finished, "query_embeddings"), _unit_sketches(finished)
    assert stored.keys() == sketches.keys()
    for query_id, sketch in sketches.items():
        along = sketch @ directions
        rest = np.sqrt(max(0, 1 - along @ along))
        np.testing.assert_allclose(stored[query_id], [*along, rest, 0], atol=2e-3)
    summary = json.loads((Path(finished.output) / "run_summary.json").read_bytes())
    assert summary["stages"]["embed"]["queries_by_gradient"] == len(sketches)


def test_the_evaluation_scores_as_the_search_does_and_says_what_texts_alone_would_give(
    finished: PipelineSettings,
) -> None:
    """Prevents figures of another way of asking than the one that attributions came from."""
    pairs = pq.read_table(Path(finished.output) / "_state/evaluate/pairs").to_pylist()
    queries, corpus = _by_id(finished, "query_embeddings"), _by_id(finished, "embeddings")
    expected = [queries[pair["query_id"]] @ corpus[pair["example_id"]] for pair in pairs]
    np.testing.assert_allclose([pair["encoder"] for pair in pairs], expected, atol=3e-3)
    methods = json.loads((Path(finished.output) / "evaluation.json").read_bytes())["methods"]
    assert methods["encoder"] != methods["encoder_by_text"]
    assert methods["encoder_by_text"].keys() == methods["encoder"].keys()


def test_texts_are_taken_where_the_settings_or_the_encoder_ask_for_it(finished: PipelineSettings) -> None:
    """Prevents an encoder without directions from failing, and a setting without effect."""
    encoder = _distilled(finished)
    assert of_gradients(finished, encoder)
    by_texts = finished.embed.model_copy(update={"query_vectors": "texts"})
    assert not of_gradients(finished.model_copy(update={"embed": by_texts}), encoder)
    encoder.head = None
    assert not of_gradients(finished, encoder)


def test_gradients_are_preconditioned_as_those_that_the_encoder_learnt(finished: PipelineSettings) -> None:
    """Prevents raw gradients from being compared with predictions of preconditioned ones."""
    mixed = finished.influence.model_copy(update={"preconditioner": "mixed_hessian"})
    settings = finished.model_copy(update={"influence": mixed})
    hessian = fit_preconditioner(settings)
    assert isinstance(hessian, MixedHessian)
    encoder = _distilled(finished)
    assert encoder.head is not None
    rows = pq.read_table(Path(finished.output) / "sketches/queries").to_pylist()
    plain, passed = of_gradients(finished, encoder), of_gradients(settings, encoder)
    for row in rows:
        sketch = np.frombuffer(row["sketch"], np.float16)[None]
        expected = encoder.head.of_sketches(hessian.apply(sketch), "queries").numpy()[0]
        np.testing.assert_allclose(passed[row["content_hash"]], expected, atol=2e-3)
    assert any(not np.allclose(plain[name], passed[name], atol=1e-2) for name in plain)


def test_a_query_without_gradient_keeps_the_vector_of_its_text() -> None:
    """Prevents a query that the teacher could not use from being lost, or from taking another's place."""
    examples = [Example(name, "", text, "") for name, text in (("a", "one"), ("b", "two"), ("c", "three"))]
    vectors = np.eye(3, dtype=np.float32)
    known = {examples[1].content_hash: np.full(3, 0.5, np.float32)}
    found, count = with_gradients(vectors, examples, known)
    assert count == 1
    assert np.array_equal(found, [[1, 0, 0], [0.5, 0.5, 0.5], [0, 0, 1]])
    nothing, count = with_gradients(vectors[:0], [], known)
    assert (nothing.shape, count) == ((0, 3), 0)
