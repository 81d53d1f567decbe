"""The mixed Hessian over stored sketches: what it is fitted on, what it changes, and what it leaves alone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from material import sentences

from influcoder_ray.attribution.preconditioning import MixedHessian
from influcoder_ray.config import PipelineSettings, settings_from
from influcoder_ray.encoder.specs import FAMILIARITY, HISTORY
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.stages import distill, evaluate, sample, sketch
from influcoder_ray.stages.signals import fit_preconditioner, influence, preconditioned, read_signals
from influcoder_ray.stages.work import evaluation
from influcoder_ray.stages.work.familiarity import familiarity_file
from influcoder_ray.tables import schemas
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.state import Output, StageState

WIDTH = 1024
SPLITS = ["train"] * 9 + ["validation"] * 4 + ["test"] * 5
# What stands in columns that influence does not look at.
UNTOLD = {pa.float32(): 1.0, pa.int32(): 1, pa.bool_(): False, pa.list_(pa.float32()): [1.0]}
MakeSettings = Callable[..., PipelineSettings]


@pytest.fixture
def make(tmp_path: Path, encoder_folder: Path) -> MakeSettings:
    """Settings whose output folder holds a sample and its sketches: `make("name", influence={...})`.

    `unlike` names a split whose sketches are drawn anew, all else equal.
    """

    def make(name: str, *, unlike: str = "", **groups: Any) -> PipelineSettings:
        columns = {"prompt": "prompt", "response": "response"}
        fields: dict[str, Any] = {
            "output": str(tmp_path / name),
            "corpus": {"path": str(tmp_path / "corpus.parquet"), "columns": columns},
            "queries": {"path": str(tmp_path / "queries.parquet"), "columns": columns},
            "model": {"path": "owner/model"},
            "encoder": {"path": str(encoder_folder), "max_tokens": 64},
            "sketch": {"width": WIDTH},
        }
        settings = settings_from(fields | groups, source="test")
        if sketch.state(settings.root).fingerprint() is None:
            _write_tables(settings, unlike)
        return settings

    return make


def _write_tables(settings: PipelineSettings, unlike: str, sampled_by: int = 0) -> None:
    """What sample and sketch leave behind: rows of unequal length that share a direction, in float16."""
    examples, sketches = {}, {}
    for seed, side in enumerate(("queries", "pool")):
        rows = [
            Example("", prompt, response, f"{side}:{i}")
            for i, (prompt, response) in enumerate(
                zip(sentences(len(SPLITS), seed, 8, 12), sentences(len(SPLITS), seed + 9), strict=True)
            )
        ]
        generator = np.random.default_rng(seed)
        raw = generator.normal(size=(len(SPLITS), WIDTH)) + generator.normal(size=WIDTH)
        raw *= generator.lognormal(size=(len(SPLITS), 1))
        other = np.random.default_rng(99).normal(size=raw.shape)
        raw = np.where(np.array([s == unlike for s in SPLITS])[:, None], other, raw)
        lengths = np.linalg.norm(raw, axis=1)
        cells = (raw / lengths[:, None]).astype(np.float16)
        hashes = [e.content_hash for e in rows]
        examples[f"sample/{side}"] = pa.table(
            {
                "example_id": [f"{side}{i}" for i in range(len(rows))],
                "content_hash": hashes,
                "split": SPLITS,
                "prompt": [e.prompt for e in rows],
                "response": [e.response for e in rows],
                "turns": [None] * len(rows),
                "source": [e.source for e in rows],
            },
            schema=schemas.EXAMPLES,
        )
        schema = schemas.sketches(WIDTH, "float16")
        told = {
            "example_id": [f"{side}{i}" for i in range(len(rows))],
            "content_hash": hashes,
            "split": SPLITS,
            "sketch": [row.tobytes() for row in cells],
            "sketch_norm": lengths.astype(np.float32),
        }
        untold = {f.name: [UNTOLD[f.type]] * len(rows) for f in schema if f.name not in told}
        sketches[f"sketches/{side}"] = pa.table(told | untold, schema=schema)
    for state, tables in ((sample.state(settings.root), examples), (sketch.state(settings.root), sketches)):
        _finish(state, tables, sampled_by)


def _finish(state: StageState, tables: dict[str, pa.Table], seed: int) -> None:
    state.begin(Fingerprint({"stage": state.stage, "seed": seed}))
    manifest = state.commit("unit", Output(tables, rows_in=0, rows_out=0), 0.0)
    state.finish({"unit": manifest}, {})


MIXED = {"preconditioner": "mixed_hessian", "mixing": 0.7, "damping": 0.3}


def fitted(settings: PipelineSettings) -> MixedHessian:
    hessian = fit_preconditioner(settings)
    assert hessian is not None
    return hessian


def test_without_preconditioner_nothing_is_read_and_nothing_changed(
    make: MakeSettings, tmp_path: Path
) -> None:
    """Prevents every worker from holding all the sketches of the training where none asked for it."""
    settings = make("run")
    empty = settings.model_copy(update={"output": str(tmp_path / "empty")})
    assert fit_preconditioner(empty) is None
    signals = read_signals(settings, "pool", "train", slice(0, None, 2))
    assert preconditioned(signals, None) is signals


def test_features_are_those_of_the_formula_on_the_stored_sketches(make: MakeSettings) -> None:
    """Prevents unit sketches, or a swapped side, from being what the Hessian is made of."""
    settings = make("run", influence=MIXED)
    training = {}
    for side in ("queries", "pool"):
        table = sketch.state(settings.root).read(f"sketches/{side}", schemas.sketches(WIDTH, "float16"))
        rows = [row for row in table.to_pylist() if row["split"] == "train"]
        unit = np.stack([np.frombuffer(row["sketch"], np.float16) for row in rows]).astype(np.float64)
        training[side] = unit * np.array([row["sketch_norm"] for row in rows])[:, None]
    hessian = 0.7 * training["queries"].T @ training["queries"] / 9
    hessian += 0.3 * training["pool"].T @ training["pool"] / 9
    values, vectors = np.linalg.eigh(hessian + 0.3 * np.trace(hessian) / 18 * np.eye(WIDTH))
    signals = [read_signals(settings, side, "test") for side in ("queries", "pool")]
    expected = [s.sketches.astype(np.float64) @ (vectors / np.sqrt(values)) @ vectors.T for s in signals]
    left, right = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in expected)
    found = influence(*(preconditioned(s, fitted(settings)) for s in signals))
    np.testing.assert_allclose(found, left @ right.T, rtol=0, atol=1e-5)
    assert np.abs(found - influence(*signals)).max() > 0.01


@pytest.mark.parametrize(("split", "same"), [("train", False), ("validation", True), ("test", True)])
def test_only_training_sketches_decide_the_preconditioner(make: MakeSettings, split: str, same: bool) -> None:
    """Prevents the test split from shaping the truth that it is to be measured against."""
    settings, other = make("run", influence=MIXED), make("other", influence=MIXED, unlike=split)
    assert not np.array_equal(
        read_signals(settings, "pool", split).sketches, read_signals(other, "pool", split).sketches
    )
    here, there = fitted(settings), fitted(other)
    assert np.array_equal(here.rows, there.rows) is same
    assert np.array_equal(here.correction, there.correction) is same


def test_workers_parts_have_the_features_of_the_whole_split(make: MakeSettings) -> None:
    """Prevents workers that fit their own parts alone, and train on features that do not compare."""
    settings = make("run", influence=MIXED)
    whole = preconditioned(read_signals(settings, "pool", "train"), fitted(settings))
    for rank in range(2):
        part = preconditioned(read_signals(settings, "pool", "train", slice(rank, None, 2)), fitted(settings))
        assert part.total == whole.total == 9
        assert part.examples == whole.examples[rank::2]
        np.testing.assert_allclose(part.sketches, whole.sketches[rank::2], rtol=0, atol=1e-6)


def test_evaluation_measures_against_the_preconditioned_truth_and_sketches_as_they_are(
    make: MakeSettings, causal_lm_folder: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents an encoder from being judged by another truth than it was taught, and a preconditioner
    from passing for an error of the sketch."""
    # Asked outside of a worker, Ray would start a cluster for the answer.
    monkeypatch.setattr("ray.get_gpu_ids", list)
    groups: dict[str, Any] = {
        "model": {"path": str(causal_lm_folder), "max_tokens": 32},
        "adapter": {"rank": 2},
        "evaluate": {"fidelity_examples": 4, "resamples": 2, "recall_at": [2]},
    }
    plain, mixed = make("run", **groups), make("run", influence=MIXED, **groups)
    encoder = Path(plain.output) / "encoder"
    shutil.copytree(encoder_folder, encoder)
    (encoder / HISTORY).write_text('{"chosen_epoch": 1, "epochs": []}')
    (encoder / FAMILIARITY).write_bytes(familiarity_file(plain, str(encoder), 1))
    evaluations = {
        name: evaluation.evaluate(s, 1, Board()) for name, s in (("none", plain), ("mixed", mixed))
    }
    for name, settings in (("none", plain), ("mixed", mixed)):
        signals = [read_signals(settings, side, "test") for side in ("queries", "pool")]
        truth = influence(*(preconditioned(s, fit_preconditioner(settings)) for s in signals))
        np.testing.assert_array_equal(evaluations[name][1]["exact"], truth.reshape(-1))
    assert evaluations["none"][1]["exact"] != evaluations["mixed"][1]["exact"]
    fidelity = [evaluations[name][0]["sketch_fidelity"] for name in ("none", "mixed")]
    assert fidelity[0] is not None
    assert fidelity[0] == fidelity[1]


class Board:
    """Stands where a Ray actor collects progress."""

    def __init__(self) -> None:
        self.set = self

    def remote(self, *progress: Any) -> None:
        """Progress is nobody's concern here."""


def distilled(settings: PipelineSettings) -> PipelineSettings:
    """The same settings; their output folder holds a finished distillation by them."""
    plan = distill.plan(settings)
    plan.state.begin(plan.fingerprint)
    files = {"encoder/config.json": b"{}"}
    manifests = {
        unit: plan.state.commit_files(unit, files, seconds=0.0, counters={}) for unit in plan.unit_ids
    }
    plan.state.finish(manifests, {})
    return settings


@pytest.mark.parametrize("stage", [distill, evaluate])
def test_another_measure_of_influence_is_another_fingerprint(make: MakeSettings, stage: Any) -> None:
    """Prevents a finished encoder or evaluation from being taken for that of another preconditioner."""
    fingerprint, changed = (
        stage.plan(distilled(make(name, influence=influence))).fingerprint
        for name, influence in (("run", {}), ("mixed", MIXED))
    )
    assert changed.digest != fingerprint.digest
    differences = {difference.split(" is ")[0] for difference in changed.differences(fingerprint)}
    assert differences - {"inputs.distill"} == {
        "influence.preconditioner",
        "influence.mixing",
        "influence.damping",
    }


def test_an_encoder_of_another_sample_or_truth_is_not_evaluated(make: MakeSettings) -> None:
    """Prevents an encoder from being tested on what it may have been trained on, in silence."""
    settings = distilled(make("run"))
    with pytest.raises(UserError, match=r'influence.preconditioner is "none" there and "mixed_hessian" here'):
        evaluate.plan(make("run", influence=MIXED))
    evaluate.plan(settings)
    _write_tables(settings, "", sampled_by=1)
    with pytest.raises(UserError, match=r"encoder holds another run: inputs.sample is "):
        evaluate.plan(settings)


def test_the_audit_looks_at_the_splits_that_training_reads(make: MakeSettings) -> None:
    """Prevents an audit of one table while training reads another, in which a test row stands as training."""
    settings = make("run")
    signals = {side: read_signals(settings, side, "test") for side in ("queries", "pool")}
    sound = evaluation._audit(settings, signals["queries"], signals["pool"])
    assert sound["disjoint"] is True
    assert sound["sizes"] == {
        f"{side}/{split}": SPLITS.count(split)
        for side in ("queries", "pool")
        for split in ("train", "validation", "test")
    }
    record = sketch.state(settings.root)
    schema = schemas.sketches(WIDTH, "float16")
    rows = record.read("sketches/pool", schema, where=pc.field("split") == "test")[:2]
    leaked = rows.set_column(rows.schema.get_field_index("split"), schema.field("split"), [["train"] * 2])
    record.begin(record.finished())
    record.commit("leak", Output({"sketches/pool": leaked}, rows_in=0, rows_out=0), 0.0)
    trained = {e.content_hash for e in read_signals(settings, "pool", "train").examples}
    assert trained > set(rows["content_hash"].to_pylist())
    audit = evaluation._audit(settings, signals["queries"], signals["pool"])
    assert (audit["disjoint"], audit["shared_contents"]) == (False, 2)
    assert audit["near_duplicates"]["pool/test"] == sound["near_duplicates"]["pool/test"] + 2
