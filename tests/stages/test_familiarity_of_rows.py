"""What the tables, the evaluation and the report of a run say about familiarity."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from material import sentences

from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.specs import FAMILIARITY
from influcoder_ray.examples import Example
from influcoder_ray.stages import distill
from influcoder_ray.stages.signals import read_examples, read_signals
from influcoder_ray.stages.work.embedding import embed_familiarly, load_encoder, load_familiarity
from influcoder_ray.stages.work.familiarity import familiarity_file


def table(settings: PipelineSettings, name: str) -> list[dict[str, Any]]:
    return pq.read_table(Path(settings.output) / name).to_pylist()


def familiarity(settings: PipelineSettings, name: str) -> dict[str, float]:
    return {row["example_id"]: row["familiarity"] for row in table(settings, name)}


def totals(settings: PipelineSettings) -> dict[str, float]:
    summary = json.loads((Path(settings.output) / "run_summary.json").read_bytes())
    found: dict[str, float] = summary["stages"]["attribute"]
    return found


@pytest.mark.parametrize(("side", "name"), [("pool", "embeddings"), ("queries", "query_embeddings")])
def test_validation_texts_are_spread_evenly_and_training_texts_lie_above_them(
    finished: PipelineSettings, side: str, name: str
) -> None:
    """Prevents a calibration on the other side's texts, or on texts that were trained on."""
    of_row = familiarity(finished, name)
    values = {
        split: np.sort([of_row[e.example_id] for e in read_examples(finished, side, split)])
        for split in ("train", "validation")
    }
    count = len(values["validation"])
    even = 100 * np.arange(1, count + 1) / (count + 1)
    # Two texts may lie within rounding of each other.
    np.testing.assert_allclose(values["validation"], even, atol=1.1 * 100 / (count + 1))
    assert np.abs(values["validation"] - even).mean() < 1
    assert values["train"].mean() > values["validation"].mean()


def test_every_row_has_a_familiarity_and_answers_carry_their_rows_own(finished: PipelineSettings) -> None:
    """Prevents a mark that belongs to another row, or is lost on the way to whoever reads the answer."""
    of_row = familiarity(finished, "embeddings")
    assert all(0 <= value <= 100 for value in of_row.values())
    assert familiarity(finished, "group_influence") == of_row
    answers = table(finished, "attributions")
    assert {row["example_id"]: row["familiarity"] for row in answers}.items() <= of_row.items()
    assert all(row["unfamiliar"] is (row["familiarity"] < 5) for row in answers)


def test_attribute_counts_what_is_unfamiliar(finished: PipelineSettings) -> None:
    """Prevents a report that is reassured by counts of something else."""
    found, answers = totals(finished), table(finished, "attributions")
    of_rows, of_queries = (familiarity(finished, n).values() for n in ("embeddings", "query_embeddings"))
    assert found["unfamiliar_rows"] == sum(value < 5 for value in of_rows)
    assert found["unfamiliar_queries"] == sum(value < 5 for value in of_queries)
    assert found["unfamiliar_attributions"] == sum(row["unfamiliar"] for row in answers)
    assert (found["queries"], found["attributions"]) == (24, len(answers))


def test_sketched_examples_are_read_as_training_reads_them(finished: PipelineSettings) -> None:
    """Prevents references and calibration from being other texts than those of the splits."""
    for side in ("pool", "queries"):
        for split in ("train", "validation", "test"):
            expected = read_signals(finished, side, split).examples
            assert read_examples(finished, side, split) == expected


def test_of_many_training_texts_a_seeded_choice_is_kept(
    finished: PipelineSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a comparison with every text of a large sample, and a choice that no replay would make."""
    monkeypatch.setattr("ray.get_gpu_ids", list)
    few = finished.model_copy(
        update={"familiarity": finished.familiarity.model_copy(update={"most_references": 7})}
    )
    folder = (finished.root / distill.ENCODER).uri
    data = familiarity_file(few, folder, 1)
    assert data == familiarity_file(few, folder, 1)
    other = few.model_copy(update={"seed": 1})
    assert data != familiarity_file(other, folder, 1)
    whole = (Path(finished.output) / "encoder" / FAMILIARITY).read_bytes()
    assert familiarity_file(finished, folder, 1) == whole
    encoder = load_encoder(finished.encoder.model_copy(update={"path": folder}), threads=1)
    assert len(load_familiarity(encoder)["pool"].references) == 36
    assert len(data) < len(whole)


def test_unlike_texts_are_less_familiar_than_the_corpus(
    finished: PipelineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a measure that a run computes and that tells nothing apart."""
    monkeypatch.setattr("ray.get_gpu_ids", list)
    folder = (finished.root / distill.ENCODER).uri
    encoder = load_encoder(finished.encoder.model_copy(update={"path": folder}), threads=1)
    measure = load_familiarity(encoder)["pool"]
    like = [
        Example(f"{i}", p, r, "f:0")
        for i, (p, r) in enumerate(zip(sentences(40, 91), sentences(40, 92), strict=True))
    ]
    unlike = [Example(f"{i}", "", "\u6f22\u5b57 " * (10 + i), "f:0") for i in range(10)]
    values = [embed_familiarly(encoder, texts, "pool", measure)[1] for texts in (like, unlike)]
    # Nine held-out texts: nothing can be shown to lie farther out than nine of ten.
    assert values[1].max() < 10 < np.quantile(values[0], 0.25)


def test_evaluation_says_how_agreement_goes_with_familiarity(finished: PipelineSettings) -> None:
    """Prevents a mark whose meaning for the ranking nobody has measured."""
    evaluation = json.loads((Path(finished.output) / "evaluation.json").read_bytes())
    bins = evaluation["agreement_by_familiarity"]
    assert sum(row["pool"] for row in bins) == evaluation["pool"]
    of_row = familiarity(finished, "embeddings")
    tested = sorted(of_row[e.example_id] for e in read_examples(finished, "pool", "test"))
    np.testing.assert_allclose([bins[0]["from"], bins[-1]["to"]], [tested[0], tested[-1]], atol=1e-2)


def test_the_report_says_how_much_is_unfamiliar(finished: PipelineSettings) -> None:
    """Prevents a reader from having to look for it in the tables."""
    html = (Path(finished.output) / "report.html").read_text()
    assert "Far from what was trained on" in html
    assert "examples kept for it" in html


def test_another_measure_of_familiarity_is_another_fingerprint(finished: PipelineSettings) -> None:
    """Prevents an encoder's file from being taken for that of other settings."""
    changed = finished.model_copy(
        update={"familiarity": finished.familiarity.model_copy(update={"neighbours": 3})}
    )
    differences = distill.plan(changed).fingerprint.differences(distill.plan(finished).fingerprint)
    assert [it.split(" is ")[0] for it in differences] == ["familiarity.neighbours"]
