"""`jobs/benchmark.py known-answers`: its parts, its cache, its figures and its refusals, on tiny models."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchmarks import answer_rows
from benchmarks.answer_gradients import GradientStore
from benchmarks.answer_methods import COSINE, ENCODER, TEXT, UNTRAINED, Cost, Method, as_rankings, reranked
from benchmarks.answer_rows import Condition, Rows
from tiny import SENTENCES

from influcoder_ray.errors import UserError
from influcoder_ray.examples import ColumnSpec, Example
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec, SketchSpec
from influcoder_ray.gradients.teacher import Teacher
from influcoder_ray.tables.place import Place

SUBJECTS = 40
PAIR = ColumnSpec(id="id", prompt="prompt", response="response")
Run = Callable[..., int]


def facts() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pool rows, three a subject of which two support its query, and one of another setting; queries."""
    pool, queries = [], []
    for number in range(SUBJECTS):
        place = SENTENCES[number % len(SENTENCES)].split()[0]
        subject = f"No. {number}"
        shared = {"setting": "one", "subject": subject, "kind": str(number % 2)}
        wordings = [f"{subject} lies in", f"In which place is {subject}? In", f"{subject} looks at"]
        pool += [
            shared | {"id": f"p{number}-{i}", "prompt": text, "response": place, "toxic": int(i == 2)}
            for i, text in enumerate(wordings)
        ]
        supports = [f"p{number}-0", f"p{number}-1"]
        asked = {"id": f"q{number}", "prompt": f"Where is {subject}? It is in", "answer": place}
        queries.append(shared | asked | {"support_ids": supports})
    return [*pool, pool[0] | {"id": "other", "setting": "two", "prompt": "a", "response": "b"}], queries


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pool.parquet and queries.parquet. Read only."""
    folder = tmp_path_factory.mktemp("answers")
    for name, rows in zip(("pool", "queries"), facts(), strict=True):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="session")
def run(
    data: Path, causal_lm_folder: Path, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Runs the benchmark on the tiny data with more options; returns its exit status."""
    work = tmp_path_factory.mktemp("work")

    def call(*options: str) -> int:
        return benchmark.main(
            [
                *(
                    "known-answers",
                    f"--pool={data / 'pool.parquet'}",
                    f"--queries={data / 'queries.parquet'}",
                ),
                *(f"--model={causal_lm_folder}", f"--encoder={encoder_folder}", f"--work={work}"),
                *("--where=setting=one", "--query-response=answer", "--device=cpu", "--threads=1"),
                *("--rank=2", "--width=1024", "--max-tokens=48", "--count=10", "--sample=30", *options),
            ]
        )

    return call


SUPPORTS = ["--supports=support_ids", "--together=subject", "--rerank=0.1", "--recall-at=5", "--seeds=2"]


@pytest.fixture(scope="session")
def figures(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one whole run wrote, and its figure under "svg". Read only."""
    folder = tmp_path_factory.mktemp("figures")
    assert run(*SUPPORTS, f"--json={folder / 'f.json'}", f"--figure={folder / 'f.svg'}") == 0
    loaded: dict[str, Any] = json.loads((folder / "f.json").read_text())
    return loaded | {"svg": (folder / "f.svg").read_text()}


def test_every_method_has_every_measure_with_its_interval_and_cost(figures: dict[str, Any]) -> None:
    """Prevents a table with holes, an interval beside its figure, and gradients that are not counted."""
    assert figures["measures"] == ["r_precision", "mrr", "recall_at_5"]
    methods = {m["method"]: m for m in figures["methods"]}
    for method in methods.values():
        for measure in figures["measures"]:
            one = method["figures"][measure]
            assert 0 <= one["low"] <= one["mean"] <= one["high"] <= 1
            assert set(method["leads"][measure]) == {"mean", "std", "share_ahead"}
        assert method["seconds"] > 0
    rows, queries, sample = 90, 10, 30 + 30
    assert (figures["test"]["rows"], figures["test"]["queries"]) == (rows, queries)
    costs = {name: list(m["gradients"].values()) for name, m in methods.items()}
    assert costs["BM25"] == costs["TF-IDF"] == costs[UNTRAINED] == [0, 0, 0, 0]
    assert costs[ENCODER] == [sample, queries, 0, 0]
    assert costs[COSINE] == [0, queries, rows, rows]
    again = costs[f"{ENCODER}, 10% re-ranked"]
    assert again[:2] == [sample, queries]
    assert 9 <= again[2] <= rows
    assert again[3] == 9
    # Half of the candidates by each of the two, which may name the same rows.
    both = costs[f"{ENCODER} and {TEXT}, 10% re-ranked"]
    assert both[:2] == [sample, queries]
    assert 5 <= both[3] <= 10
    assert costs[TEXT] == [sample, 0, 0, 0]
    assert methods[UNTRAINED]["leads"]["mrr"]["mean"] == 0
    assert len(methods[ENCODER]["seeds"]["mrr"]["each"]) == len(figures["chosen_epochs"]) == 2
    assert methods[COSINE]["seeds"] is None


def test_the_figure_names_every_method(figures: dict[str, Any]) -> None:
    """Prevents a drawing with points that nobody can tell apart."""
    texts = " ".join(it.text or "" for it in ElementTree.fromstring(figures["svg"]).iter())
    for method in figures["methods"]:
        assert f"{method['method']}  {method['figures']['r_precision']['mean']:.3f}" in texts


def test_a_second_run_computes_no_gradient_and_trains_nothing(
    figures: dict[str, Any], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a run that was cut off from paying twice, and figures that change on the way."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("was computed before")

    monkeypatch.setattr(Teacher, "sketch", fail)
    monkeypatch.setattr("benchmarks.answer_encoders.training", fail)
    assert run(*SUPPORTS, f"--json={tmp_path / 'f.json'}") == 0
    again = json.loads((tmp_path / "f.json").read_text())
    for before, after in zip(figures["methods"], again["methods"], strict=True):
        assert before["figures"] == after["figures"]


def test_labelled_rows_are_measured_in_groups_and_with_negative_references(run: Run, tmp_path: Path) -> None:
    """Prevents groups that are lost, and negative references that are tested on as well."""
    options = ["--label=toxic", "--group=kind", "--rerank=0.1", "--rows=50"]
    negatives = ["--negatives=toxic=0", "--negative-count=5", "--negative-weight=0.5"]
    assert run(*options, *negatives, f"--json={tmp_path / 'f.json'}") == 0
    found = json.loads((tmp_path / "f.json").read_text())
    parts = [f"average_precision{part}" for part in ("", ", 0", ", 1")]
    assert found["measures"] == parts
    assert found["test"]["negative_queries"] == 5
    assert found["test"]["rows"] == 50
    assert found["test"]["rows_that_these_stand_for"] == 120 - 30 - 5
    names = [m["method"] for m in found["methods"]]
    assert {COSINE, f"{COSINE}, negatives x 0.5", f"{ENCODER}, 10% re-ranked, negatives x 0.5"} <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--label=kind", "--where=kind=2"], "holds no usable row with setting=one with kind=2"),
        (["--label=setting"], "setting of 'p0-0' is 'one'; give 0 or 1"),
        (["--supports=subject"], "is no list of pool ids"),
        (["--supports=support_ids", "--where=nothing=1"], "neither file has a column 'nothing'"),
        (["--supports=support_ids", "--where=nothing"], "'nothing' is no condition; give column=value"),
        (["--supports=support_ids", "--sample=110"], "lower --sample or --count"),
        (["--supports=support_ids", "--negatives=toxic=0"], "give --label, or leave it out"),
        (["--label=toxic", "--negatives=toxic=0", "--negative-count=81"], "lower --negative-count"),
        (["--supports=support_ids", "--width=1000"], "--width: 1000 is no width of a sketch"),
        (["--supports=support_ids", "--optimizer-state=a"], "give its folder as --adapter"),
        (["--supports=support_ids", "--id=setting"], "stands twice; give a column of unique ids"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    run: Run, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a traceback, or minutes of gradients before a typing error shows."""
    assert run(*options) == 2
    captured = capsys.readouterr()
    error = " ".join((captured.err + captured.out).split())
    assert said in error
    assert "Traceback" not in error


def rows_of(number: int, **cells: list[Any]) -> Rows:
    examples = [Example(f"r{i}", f"prompt {i}", "response", f"f:{i}") for i in range(number)]
    return Rows(examples, cells, {e.example_id: i for i, e in enumerate(examples)}, (), 0)


def queries_of(number: int, **cells: list[Any]) -> Rows:
    examples = [Example(f"q{i}", f"question {i}", "answer", f"q:{i}") for i in range(number)]
    return Rows(examples, cells, {e.example_id: i for i, e in enumerate(examples)}, (), 0)


def test_nothing_is_tested_on_what_is_learnt_from() -> None:
    """Prevents an encoder from being tested on its own training rows, or on those about the same subject."""
    subjects = [i // 3 for i in range(60)]
    pool, queries = rows_of(60, subject=subjects), queries_of(20, subject=list(range(20)))
    positives = [[3 * i, 3 * i + 1] for i in range(20)]
    parts = answer_rows.split(
        queries,
        pool,
        positives=positives,
        seed=0,
        count=8,
        rows=30,
        sample=20,
        sample_queries=None,
        together="subject",
        negatives=[],
    )
    learnt = {side: {r for part in p.values() for r in part} for side, p in parts.training.items()}
    assert not learnt["pool"] & set(parts.rows)
    assert not learnt["queries"] & set(parts.queries)
    assert (len(learnt["pool"]), len(learnt["queries"]), len(parts.rows)) == (20, 12, 30)
    tested = set(parts.queries)
    assert {subjects[row] for row in learnt["pool"]}.isdisjoint(tested)
    # All that is about a tested subject is there; of the other 16 rows, six stand for all.
    assert {row for row, subject in enumerate(subjects) if subject in tested} <= set(parts.rows)
    assert parts.row_weights.sum() == pytest.approx(40)
    assert sorted(set(parts.row_weights)) == pytest.approx([1, 16 / 6])


def test_rows_to_be_found_are_never_ranked_by_themselves() -> None:
    """Prevents an average precision of 1 for every method, where there is nothing that could stand above."""
    labels = np.arange(60) % 2 == 0

    def split(rows: int) -> answer_rows.Parts:
        return answer_rows.split(
            queries_of(20),
            rows_of(60),
            positives=labels,
            seed=0,
            count=8,
            rows=rows,
            sample=20,
            sample_queries=None,
            together=None,
            negatives=[],
        )

    found = int(labels[split(40).rows].sum())
    with pytest.raises(UserError, match=f"--rows: {found} rows are to be found"):
        split(found)
    assert len(split(found + 1).rows) == found + 1


def test_a_query_that_stands_in_the_pool_is_no_test() -> None:
    """Prevents an answer that a method finds because it is the question."""
    pool = rows_of(40)
    queries = Rows([*queries_of(30).examples, pool.examples[0]], {}, {}, (), 0)
    parts = answer_rows.split(
        queries,
        pool,
        positives=np.arange(40) < 5,
        seed=0,
        count=15,
        rows=None,
        sample=12,
        sample_queries=None,
        together=None,
        negatives=[],
    )
    assert 30 not in parts.of_queries


def test_repeated_content_is_one_row_that_every_id_finds(tmp_path: Path) -> None:
    """Prevents a support that is not found because its text was read under another id."""
    given = {"a": "x", "b": " x ", "c": "y", "d": None}
    cells = [{"id": i, "prompt": "p", "response": response} for i, response in given.items()]
    pq.write_table(pa.Table.from_pylist(cells), tmp_path / "rows.parquet")
    rows = answer_rows.read(str(tmp_path / "rows.parquet"), PAIR, option="--pool")
    assert [e.example_id for e in rows.examples] == ["a", "c"]
    assert rows.row_of_id == {"a": 0, "b": 0, "c": 1}
    assert rows.unusable == 1


def test_conditions_are_written_as_on_a_command_line() -> None:
    """Prevents a filter on a boolean column that matches nothing."""
    condition = Condition.parse("column=true,1,a b", option="--where")
    assert [condition.holds(v) for v in (True, 1, "a b", False, None)] == [True, True, True, False, False]


@pytest.fixture
def store(causal_lm_folder: Path, tmp_path: Path) -> Callable[..., GradientStore]:
    def make(rank: int = 2, seed: int = 0) -> GradientStore:
        model = ModelSpec(path=str(causal_lm_folder), max_tokens=48)
        sketch = SketchSpec(width=1024, dtype="float32")
        place, adapter = Place(str(tmp_path)), AdapterSpec(rank=rank)
        return GradientStore(place, model, adapter, sketch, seed=seed, device=torch.device("cpu"))

    return make


def test_kept_gradients_are_those_of_the_teacher_and_of_no_other(store: Callable[..., GradientStore]) -> None:
    """Prevents stale gradients: another adapter's, another text's, or those of rows in another order."""
    examples = [Example(str(i), f"Why {i}?", text, "f:0") for i, text in enumerate(SENTENCES[:6])]
    store().compute(examples[:4], lambda text: None)
    store().compute(examples, lambda text: None)
    first, backwards = store().read(examples), store().read(examples[::-1])
    np.testing.assert_array_equal(first.sketches, backwards.sketches[::-1])
    assert set(first.faults) == {""}
    other = store(rank=3)
    assert set(other.read(examples).faults) == {"not computed"}
    other.compute(examples, lambda text: None)
    assert not np.allclose(other.read(examples).sketches, first.sketches)
    # The same content but for its white space is another text to the teacher.
    spaced = Example("s", "Why  0?", examples[0].response, "f:0")
    assert spaced.content_hash == examples[0].content_hash
    assert store().read([spaced]).faults == ["not computed"]


def test_a_row_without_a_gradient_says_why(store: Callable[..., GradientStore]) -> None:
    """Prevents zeros from passing for a gradient."""
    lone = Example("s", "", "a", "f:0")
    store().compute([lone], lambda text: None)
    found = store().read([lone])
    assert found.faults[0]
    assert not found.sketches.any()


def test_references_give_one_ranking_and_its_candidates_are_its_own() -> None:
    """Prevents the candidates of each reference from being paid for where one ranking is asked for."""
    scores = np.random.default_rng(0).normal(size=(5, 20))
    one = as_rankings(Method("m", [scores], Cost()), 3, 0.5, by_label=True)
    assert one.scores[0] == pytest.approx((scores[:3].mean(0) - 0.5 * scores[3:].mean(0))[None])
    found = reranked(one, one, 0.1)
    assert [m.cost.rows for m in found] == [2]
    assert as_rankings(Method("m", [scores], Cost()), 5, 0, by_label=False).scores[0] is scores
