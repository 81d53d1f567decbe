"""The sketch stage's work on a unit, without Ray: what is sketched, of whom, and what is set aside."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from influcoder_ray.examples.example import from_table
from influcoder_ray.gradients.optimizer import save_optimizer_state
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec, SketchSpec
from influcoder_ray.gradients.teacher import Teacher
from influcoder_ray.stages.sketch import POOL, QUERIES
from influcoder_ray.stages.work import sketching
from influcoder_ray.stages.work.sketching import SketchWork, as_stored
from influcoder_ray.tables import schemas
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Output
from influcoder_ray.tables.units import Piece, Unit

CPU = torch.device("cpu")
WIDTH, SEED = 1_024, 3
TEXTS = ["Bread is made of flour.", "x", "Seven times eight is fifty-six, and so on. " * 3, "Tokyo!"]
ROWS = pa.table(
    {
        "example_id": [f"e{i}" for i in range(len(TEXTS))],
        "content_hash": [f"h{i}" for i in range(len(TEXTS))],
        "split": ["train"] * len(TEXTS),
        "prompt": ["", "", "What is it?", ""],
        "response": TEXTS,
        "turns": [None] * len(TEXTS),
        "source": [f"f:{i}" for i in range(len(TEXTS))],
    },
    schema=schemas.EXAMPLES,
)


@pytest.fixture(scope="module")
def adapter(causal_lm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AdapterSpec:
    """An adapter after two steps of AdamW, with its optimizer's state beside it."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(causal_lm_folder), LoraConfig(r=2, target_modules=["q_proj"])
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        ids = torch.arange(5, 20)[None] + step
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    save_optimizer_state(optimizer, model.named_parameters(), folder / "optimizer.safetensors")
    return AdapterSpec(path=str(folder), optimizer_state="optimizer.safetensors")


def sketched(model: ModelSpec, adapter: AdapterSpec, table: str, monkeypatch: pytest.MonkeyPatch) -> Output:
    """What the stage makes of the rows as a unit of the pool or of the queries."""
    monkeypatch.setattr(sketching, "prepare_device", lambda threads: CPU)
    work = SketchWork(
        model,
        adapter,
        SketchSpec(width=WIDTH, dtype="float32"),
        seed=SEED,
        threads=1,
        pool_table=POOL,
        stage="sketch",
    )
    unit = Unit("unit", (Piece(Place("unused"), "f", (0,), 0, len(TEXTS)),), table)
    return work.process(unit, ROWS, lambda rows: None)


def unit_sketches(table: pa.Table) -> np.ndarray:
    return np.stack([np.frombuffer(cell, np.float32) for cell in table["sketch"].to_pylist()])


def test_with_an_optimizers_state_the_pool_is_sketched_as_its_steps_and_queries_are_not(
    causal_lm_folder: Path, adapter: AdapterSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents Adam's steps on the wrong side, where influence would mean something else than LESS's."""
    model = ModelSpec(path=str(causal_lm_folder), max_tokens=64)
    teacher = Teacher.load(model, adapter, seed=SEED, device=CPU)
    assert teacher.pool_direction is not None
    tokens = [t for t in teacher.tokens(from_table(ROWS)) if t.labelled]
    norms = np.linalg.norm(teacher.gradients(tokens), axis=1)
    for table, direction in ((QUERIES, None), (POOL, teacher.pool_direction)):
        found = sketched(model, adapter, table, monkeypatch).tables[table]
        expected = teacher.sketch(tokens, CountSketch(WIDTH, SEED), direction=direction).sketches
        lengths = np.linalg.norm(expected, axis=1)
        np.testing.assert_allclose(unit_sketches(found), expected / lengths[:, None], atol=1e-6)
        np.testing.assert_allclose(found["sketch_norm"], lengths, rtol=1e-5)
        # Of the gradient, whatever is sketched in its place.
        np.testing.assert_allclose(found["gradient_norm"], norms, rtol=1e-5)
    plain, steps = (
        unit_sketches(sketched(model, adapter, t, monkeypatch).tables[t]) for t in (QUERIES, POOL)
    )
    assert (plain * steps).sum(1).max() < 0.99, "steps that point as gradients do prove nothing"


def test_rows_that_cannot_be_used_are_set_aside_with_their_reason(
    causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents one long or empty row from failing the unit, and the rows beside it."""
    model = ModelSpec(path=str(causal_lm_folder), max_tokens=64, template="plain")
    forward = torch.nn.Embedding.forward

    def small(module: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        if ids.numel() > 40:
            raise torch.OutOfMemoryError("fake")
        return forward(module, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", small)
    output = sketched(model, AdapterSpec(rank=2), POOL, monkeypatch)
    assert output.tables[POOL]["example_id"].to_pylist() == ["e0", "e3"]
    aside = output.quarantine.to_pylist()
    assert sorted((row["example_id"], row["reason"]) for row in aside) == [
        ("e1", "no token to predict"),
        ("e2", "does not fit the device's memory"),
    ]
    assert output.rows_in == output.rows_out + len(aside)
    assert output.counters["positions"] == output.counters["tokens"]


def test_a_module_has_its_norm_beside_the_sketch(
    causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents norms of modules in another order than the one that users are told."""
    model = ModelSpec(path=str(causal_lm_folder), max_tokens=64)
    spec = AdapterSpec(rank=2, targets=("q_proj", "down_proj"))
    found = sketched(model, spec, POOL, monkeypatch).tables[POOL]
    teacher = Teacher.load(model, spec, seed=SEED, device=CPU)
    tokens = [t for t in teacher.tokens(from_table(ROWS)) if t.labelled]
    sizes = np.cumsum([w.gradient_size for w in teacher.weights])[:-1]
    expected = [np.linalg.norm(part, axis=1) for part in np.split(teacher.gradients(tokens), sizes, axis=1)]
    np.testing.assert_allclose(np.stack(found["module_norms"].to_pylist(), 1), expected, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-24, 1e-21, 1.0, 1e15])
def test_a_sketch_of_any_size_is_kept_at_unit_length(size: float) -> None:
    """Prevents infinite numbers of an example that is learnt by heart, whose gradient is all but zero."""
    sketches = (size * np.random.default_rng(0).normal(size=(3, 64))).astype(np.float32)
    norms, unit = as_stored(sketches, np.dtype("float32"))
    np.testing.assert_allclose(norms, np.linalg.norm(sketches.astype(np.float64), axis=1), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
