"""A corpus with conditions is, for every stage, the corpus of the rows that meet them."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from made_up import corpus_rows, in_this_process, made_up_run, run, write_corpus
from material import data_table
from rich.console import Console

from influcoder_ray import pipeline
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.planning.data import survey
from influcoder_ray.stages import embed, sample
from influcoder_ray.stages.texts import corpus_examples
from influcoder_ray.tables import schemas

PACKAGE = Path(pipeline.__file__).parent
MakeSettings = Callable[..., PipelineSettings]
WHERE = {"length": {"at_least": 5}, "label": {"none_of": [1]}, "extra.word": {"none_of": ["w2"]}}
MEETING = [
    row for row in corpus_rows() if row["length"] >= 5 and row["label"] == 0 and row["extra"]["word"] != "w2"
]
QUERY_ROWS, CORPUS_ROWS = 12, 120
COLUMNS = {"id": "id", "prompt": "prompt", "response": "response"}


@pytest.fixture
def made(make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSettings:
    """Settings for a corpus with conditions, whose stages run without Ray."""
    in_this_process(monkeypatch)
    queries = [{"id": f"q{i}", "prompt": f"Is {i} even?", "response": "yes"} for i in range(QUERY_ROWS)]
    pq.write_table(pa.Table.from_pylist(queries), tmp_path / "queries.parquet")

    def settings(output: str, path: Path, where: dict[str, Any], **groups: Any) -> PipelineSettings:
        queries = {"path": str(tmp_path / "queries.parquet"), "columns": COLUMNS}
        corpus = {"path": str(path), "columns": COLUMNS, "where": where}
        return make_settings(tmp_path / output, corpus=corpus, queries=queries, **groups)

    return settings


def rows_of(settings: PipelineSettings, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(settings.output) / name).to_pylist()
    return rows


def test_no_module_looks_for_a_data_sets_files_past_its_conditions() -> None:
    """Prevents a new stage from reading a corpus by its path alone, and so the rows that were left out."""
    calls = [
        (str(path.relative_to(PACKAGE)), ast.unparse(node))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("find_data_files")
    ]
    of_data_sets = [
        (path, call) for path, call in calls if re.search(r"(corpus|queries|data|self)\.path", call)
    ]
    assert [path for path, _ in of_data_sets] == ["examples/data.py"]
    assert "where=self.conditions" in of_data_sets[0][1]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "small-parquet"])
def test_the_parts_of_a_corpus_are_chosen_from_and_written_without_what_is_left_out(
    kind: str, made: MakeSettings, tmp_path: Path
) -> None:
    """Prevents rows that nobody scored from being chosen, from staying, and from moving their neighbours."""
    path = write_corpus(tmp_path, kind)
    amounts = {"filter": {"fraction": 0.2}, "select": {"count": 5, "token_column": "length"}}
    settings = made("run", path, WHERE, embed={"rows_per_unit": 20}, **amounts)
    made_up_run(settings)
    embedded = embed.state(settings.root).data_files(embed.CORPUS)
    assert sum(sum(file.row_groups or ()) for file in embedded) == len(MEETING)
    run(settings, "filter")
    run(settings, "select")
    by_id = {row["id"]: row for row in MEETING}
    stayed, removed = rows_of(settings, "filtered"), rows_of(settings, "removed")
    assert sorted(row["id"] for row in (*stayed, *removed)) == sorted(by_id)
    assert len(removed) == len(MEETING) // 5
    assert all(row == by_id[row["id"]] for row in stayed)
    selected = rows_of(settings, "selected")
    assert len(selected) == 5
    assert {name: value for name, value in selected[0].items() if name in by_id[selected[0]["id"]]} == by_id[
        selected[0]["id"]
    ]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_the_sample_is_that_of_a_corpus_which_holds_no_other_rows(
    kind: str, made: MakeSettings, tmp_path: Path
) -> None:
    """Prevents a sample with rows that nobody asked for, or whose sources name other rows."""
    path = write_corpus(tmp_path, kind)
    (tmp_path / "alone").mkdir()
    pq.write_table(pa.Table.from_pylist(MEETING), tmp_path / "alone/a.parquet", row_group_size=7)
    found = made("found", path, WHERE, sample={"pool": 20, "rows_per_unit": 15})
    alone = made("alone-run", tmp_path / "alone", {}, sample={"pool": 20})
    tables = []
    for settings in (found, alone):
        run(settings, "sample")
        tables.append(sample.state(settings.root).read(sample.POOL, schemas.EXAMPLES))
    assert tables[0].drop_columns("source").equals(tables[1].drop_columns("source"))
    texts = corpus_examples(found, tables[0]["source"].to_pylist())
    assert [texts[source].example_id for source in tables[0]["source"].to_pylist()] == tables[0][
        "example_id"
    ].to_pylist()
    totals = sample.state(found.root).totals() or {}
    broken = 1 if kind == "jsonl" else 0
    assert totals["rows_in"] == len(MEETING) + broken + QUERY_ROWS
    assert totals["left_out"] == len(corpus_rows()) - len(MEETING)


def test_a_changed_condition_asks_for_a_sample_of_its_own(made: MakeSettings, tmp_path: Path) -> None:
    """Prevents the rows of other conditions from passing for those that were asked for."""
    path = write_corpus(tmp_path, "parquet")
    run(made("run", path, WHERE, sample={"pool": 20}), "sample")
    changed = made("run", path, WHERE | {"length": {"at_least": 4}}, sample={"pool": 20})
    with pytest.raises(UserError, match=r"corpus\.where\.length\.at_least is 5 there and 4 here"):
        run(changed, "sample")


@pytest.mark.parametrize(
    ("kind", "where", "message"),
    [
        ("parquet", {"lang": "en"}, r"^corpus\.where\.lang: .*a\.parquet has no column 'lang'; it has id, "),
        ("jsonl", {"lang": "en"}, r"^corpus\.where\.lang: .*a\.jsonl has no column 'lang'; it has id, "),
        ("parquet", {"extra.w": "en"}, r"^corpus\.where\.extra\.w: .* 'extra\.w'; .*extra \(list, word\)"),
        ("jsonl", {"extra.w": "en"}, r"^corpus\.where\.extra\.w: .* no column 'extra\.w'; it has id, "),
        ("parquet", {"extra.word": 3}, r"^corpus\.where\.extra\.word: 3 cannot be compared .* is string"),
        ("parquet", {"length": "long"}, r"^corpus\.where\.length: 'long' cannot be compared .* is int64"),
        ("jsonl", {"length": "long"}, r"^corpus\.where\.length: compares with text, .* holds number"),
        ("parquet", {"extra": "w1"}, r"^corpus\.where\.extra: 'w1' cannot be compared .* is struct"),
        ("jsonl", {"extra": "w1"}, r"^corpus\.where\.extra: compares with text, .* holds object"),
        ("parquet", {"length": {"above": 99}}, r"^corpus\.where: no row of .* can match.*length above 99"),
    ],
)
def test_what_can_be_known_of_a_condition_is_refused_before_any_work(
    kind: str, where: dict[str, Any], message: str, made: MakeSettings, tmp_path: Path
) -> None:
    """Prevents a run that reads a crawl to find out that a column's name was misspelt."""
    settings = made("run", write_corpus(tmp_path, kind), where)
    for act in (lambda: sample.check(settings), lambda: pipeline.run(settings, stages=["sample"])):
        with pytest.raises(UserError, match=message) as refused:
            act()
        assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "run/_state").exists()


def test_conditions_that_leave_no_row_are_refused_once_that_is_seen(
    made: MakeSettings, tmp_path: Path
) -> None:
    """Prevents an empty corpus from ending in a message about its size, or in none."""
    settings = made("run", write_corpus(tmp_path, "parquet"), {"id": "c0x"})
    message = r"^corpus\.where: none of the 90 rows of .* meets it \(id equals 'c0x'\)"
    with pytest.raises(UserError, match=message):
        run(settings, "sample")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_plan_counts_on_the_rows_that_meet_the_conditions(
    kind: str, made: MakeSettings, tmp_path: Path
) -> None:
    """Prevents a plan, and a bill, for rows that no stage will see."""
    settings = made("run", write_corpus(tmp_path, kind), WHERE)
    found = survey(settings.corpus, setting="corpus")
    assert not found.counted
    assert [e.example_id for e in found.examples] == [row["id"] for row in MEETING]
    assert found.usable_rows == len(MEETING)
    assert sum(found.units(20)) == pytest.approx(found.rows, abs=5)
    rare = made("run", write_corpus(tmp_path, "parquet"), {"id": "c0x"}).corpus
    with pytest.raises(UserError, match=r"^corpus\.where: none of \d+ rows that were looked at"):
        survey(rare, setting="corpus")


@pytest.mark.long
def test_a_whole_run_with_conditions_is_that_of_a_corpus_which_holds_no_other_rows(
    make_settings: MakeSettings, local_ray: None, tmp_path: Path
) -> None:
    """Prevents a stage, the report's texts among them, from seeing a row that the others do not."""
    english, other = data_table(CORPUS_ROWS, 1, "c"), data_table(CORPUS_ROWS, 31, "x")
    both = pa.concat_tables(
        [
            english.append_column("language", pa.array(["en"] * CORPUS_ROWS)),
            other.append_column("language", pa.array(["de"] * CORPUS_ROWS)),
        ]
    ).take(np.random.default_rng(0).permutation(2 * CORPUS_ROWS))
    kept = both.filter(pc.field("language") == "en")
    totals, tables = [], []
    for name, table, where in (("both", both, {"language": "en"}), ("kept", kept, {})):
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=13)
        corpus = {"path": str(tmp_path / f"{name}.parquet"), "where": where}
        settings = make_settings(tmp_path / name, corpus=corpus, rerank={"candidates": 3})
        pipeline.run(settings, console=Console(quiet=True))
        totals.append(sample.state(settings.root).totals() or {})
        tables.append({stage: pq.read_table(tmp_path / name / stage) for stage in ("embeddings", "reranked")})
        assert ("120 rows do not meet" in (tmp_path / name / "report.html").read_text()) == bool(where)
    assert [found["left_out"] for found in totals] == [CORPUS_ROWS, 0]
    assert totals[0]["rows_in"] == totals[1]["rows_in"]
    found, expected = (
        {row["example_id"]: (row["embedding"], row["source"]) for row in each["embeddings"].to_pylist()}
        for each in tables
    )
    assert found.keys() == expected.keys() == set(english["id"].to_pylist())
    for example_id, (vector, source) in found.items():
        # Batches of other neighbours add up in another order.
        np.testing.assert_allclose(
            np.array(vector, np.float32), np.array(expected[example_id][0], np.float32), atol=5e-3
        )
        assert both["id"][int(source.rsplit(":", 1)[1])].as_py() == example_id
    pairs = [
        {(row["query_id"], row["example_id"]) for row in each["reranked"].to_pylist()} for each in tables
    ]
    assert len(pairs[0] & pairs[1]) > 0.9 * len(pairs[1])
