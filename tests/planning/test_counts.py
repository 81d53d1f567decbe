"""What stages would do follows from the settings and the data, in proportion."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planned import COLUMNS, rows

from influcoder_ray import planning
from influcoder_ray.config import PipelineSettings
from influcoder_ray.examples.example import Example, to_table
from influcoder_ray.planning.storage import size_of_examples, size_of_table
from influcoder_ray.planning.work import Work
from influcoder_ray.tables import schemas
from influcoder_ray.tables.state import parquet_bytes

Make = Callable[..., PipelineSettings]


def works(settings: PipelineSettings) -> dict[str, Work]:
    return {work.stage: work for work in planning.count(settings).works()}


def test_twice_the_rows_are_twice_the_work_of_what_reads_the_corpus(
    make_plan_settings: Make, tmp_path: Path
) -> None:
    """Prevents an estimate that is right for one size alone."""
    for name, times in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        for number in range(2 * times):
            pq.write_table(rows(100, "c"), tmp_path / name / f"{number}.parquet", row_group_size=20)
    one, two = (
        works(make_plan_settings(corpus={"path": str(tmp_path / name)}, embed={"rows_per_unit": 20}))
        for name in ("one", "two")
    )
    queries = works(make_plan_settings())["sketch"].rows - 60
    assert two["sample"].rows - 40 == 2 * (one["sample"].rows - 40) == 400
    assert two["embed"].rows - queries == 2 * (one["embed"].rows - queries) == 400
    # The queries' part stays; the rest doubles.
    added = two["embed"].tokens - one["embed"].tokens
    per_row = added / 200
    assert one["embed"].tokens == pytest.approx(200 * per_row + 40 * per_row, rel=0.1)
    assert two["attribute"].flops == 2 * one["attribute"].flops
    assert two["attribute"].shared_units == 2 * one["attribute"].shared_units == 20
    assert two["attribute"].bytes_written == pytest.approx(2 * one["attribute"].bytes_written, rel=0.2)
    # The sample is as large as before, and so is everything that is done on it alone.
    for stage in ("sketch", "distill", "evaluate"):
        before, after = (replace(found[stage], rests_on=(), bytes_written=0) for found in (one, two))
        assert after == before
        assert two[stage].bytes_written == pytest.approx(one[stage].bytes_written, rel=0.05)


def test_stages_are_those_that_the_settings_want(make_plan_settings: Make) -> None:
    """Prevents money for a stage that is left out, or none for one that is asked for."""
    plain = works(make_plan_settings())
    assert list(plain) == ["sample", "sketch", "distill", "embed", "attribute", "evaluate"]
    asked = works(make_plan_settings(rerank={"candidates": 5}, explore={"examples": 10, "among": 4}))
    stages = "sample sketch explore distill embed attribute rerank evaluate"
    assert list(asked) == stages.split()
    assert asked["explore"].alone["encoder"] > 0
    assert asked["distill"].flops > plain["distill"].flops
    # Of 40 queries' 200 candidates in 200 rows, 60 are in the sample.
    assert asked["rerank"].rows == 200
    assert asked["rerank"].shared["gradients"] == pytest.approx(
        asked["explore"].shared["gradients"] * 140 / 10
    )


def test_validation_is_as_many_fine_tunes_as_are_asked_for(make_plan_settings: Make) -> None:
    """Prevents hours of fine-tunes that the plan says nothing of."""
    tuning = {"steps": 10, "batch_size": 4}
    none = works(make_plan_settings(validate=tuning))
    assert "validate" not in none
    one, two = (
        works(make_plan_settings(validate=tuning | {"seeds": seeds, "subsets": 6}))["validate"]
        for seeds in (1, 2)
    )
    # Of each seed the whole pool, and two methods and chance that select and remove.
    assert two.rows - one.rows == 40 * 7
    assert one.rows == 40 * (7 + 6)
    assert one.shared_units == 14
    per_example = works(make_plan_settings())["sketch"].shared["gradients"] / (60 + 40)
    assert two.shared["gradients"] > one.shared["gradients"] > 0.8 * one.rows * per_example


def test_more_seeds_and_epochs_are_more_distillation(make_plan_settings: Make) -> None:
    """Prevents the spread over seeds, which trains anew for each, from seeming free."""
    one, three = (works(make_plan_settings(evaluate={"seeds": seeds})) for seeds in (1, 3))
    assert three["evaluate"].flops - one["evaluate"].flops > 2 * one["distill"].flops
    assert three["distill"] == one["distill"]
    short, long = (works(make_plan_settings(distill={"epochs": epochs})) for epochs in (1, 3))
    assert long["distill"].flops > 3 * short["distill"].flops
    paper = works(make_plan_settings(distill={"recipe": "influcoder", "epochs": 3}))
    assert paper["distill"].bytes_written < long["distill"].bytes_written


def test_shorter_vectors_are_fewer_bytes_and_a_shorter_search_and_nothing_else(
    make_plan_settings: Make,
) -> None:
    """Prevents a plan for vectors that nobody keeps, and a head that seems to get smaller with them."""
    whole, fewer = (works(make_plan_settings(embed=embed)) for embed in ({}, {"dimensions": 16}))
    rows = whole["embed"].rows
    # 112 numbers less, of two bytes.
    saved = whole["embed"].bytes_written - fewer["embed"].bytes_written
    assert saved == pytest.approx(rows * 2 * 112, rel=0.05)
    assert fewer["attribute"].flops == whole["attribute"].flops * 18 / 130
    assert {**fewer, "embed": 0, "attribute": 0} == {**whole, "embed": 0, "attribute": 0}


def test_rows_of_json_lines_are_marked_as_estimates_everywhere(
    make_plan_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a figure that rests on a guess from standing there like one that was counted."""
    assert all(work.rows_counted for work in works(make_plan_settings()).values())
    path = tmp_path / "corpus.jsonl"
    rows(300, "c").to_pandas().to_json(path, orient="records", lines=True)
    monkeypatch.setattr("influcoder_ray.planning.data._COUNTED_BYTES", 5_000)
    monkeypatch.setattr("influcoder_ray.tables.json_lines._READ_BYTES", 4096)
    found = works(make_plan_settings(corpus={"path": str(path), "columns": COLUMNS}))
    assert not any(work.rows_counted for work in found.values())
    assert "corpus: rows of JSON Lines are estimated by the bytes of some" in found["sample"].rests_on
    assert any("of about" in sentence for sentence in found["embed"].rests_on)


@pytest.mark.parametrize("count", [200, 1000])
def test_sizes_are_those_of_tables_that_are_written(count: int) -> None:
    """Prevents bytes that are off by a compression, a column or a footer."""
    examples = [
        Example(f"e{i}", f"what is {i * i} over {i + 7}", f"the number {i} adds to {i * 3}", f"file:{i}")
        for i in range(count)
    ]
    known = size_of_examples(examples[:200])
    table = to_table(examples, ["train"] * count)
    written = len(parquet_bytes(table.replace_schema_metadata({"fingerprint": "f" * 1000})))
    assert known.of(1, count) == pytest.approx(written, rel=0.15)
    vectors = schemas.embeddings(64)
    size = size_of_table(vectors, examples)
    # Numbers alone, and no more than a third beside them.
    assert 2 * 64 * count < size.of(1, count) < 1.34 * 2 * 64 * count + 5_000
    sketches = size_of_table(schemas.sketches(4096, "float16"), examples, list_length=14)
    assert isinstance(vectors, pa.Schema)
    assert sketches.row_bytes == pytest.approx(2 * 4096 + 4 * 14, rel=0.05)
