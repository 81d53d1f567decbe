"""Re-ranking on tiny models: exact scores and order, each gradient once, and what is left as it was."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from material import file_hashes, sentences
from rich.console import Console

from influcoder_ray import cli, pipeline
from influcoder_ray.attribution.preconditioning import MixedHessian
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.teacher import Teacher
from influcoder_ray.stages import rerank, units_on_ray
from influcoder_ray.stages.work.reranking import order

QUIET = Console(quiet=True)
MakeSettings = Callable[..., PipelineSettings]
UP_TO_ATTRIBUTE = pipeline.STAGES[: pipeline.STAGES.index("attribute") + 1]
# One token: nothing to predict, so no gradient.
SINGLE = ("x", "y", "!")
TEXTS = sentences(40, 11)
# Contents that stand under a second id; of the second one white space alone differs.
TWINS = {"twin0": TEXTS[0], "twin1": f"  {TEXTS[1]}\n", "twin2": TEXTS[2], "twin3": TEXTS[3]}
CORPUS = {f"c{i:02}": text for i, text in enumerate(TEXTS)} | {f"s{text}": text for text in SINGLE} | TWINS
QUERIES = {f"q{i:02}": text for i, text in enumerate(sentences(12, 31))} | {"qz": "z"}


def rows_of(settings: PipelineSettings, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(settings.output) / name).to_pylist()
    return rows


def content_of(example_id: str) -> str:
    return Example("", "", CORPUS[example_id], "").content_hash


def of_query(rows: list[dict[str, Any]], query_id: str) -> list[dict[str, Any]]:
    return sorted((row for row in rows if row["query_id"] == query_id), key=lambda row: row["rank"])


@pytest.fixture(scope="module")
def attributed(
    make_settings: MakeSettings, local_ray: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., PipelineSettings]:
    """Settings of copies of a run up to `attribute`, of which every row is a candidate of every query."""
    folder = tmp_path_factory.mktemp("attributed")
    data = {}
    for name, texts in (("corpus", CORPUS), ("queries", QUERIES)):
        table = pa.table({"id": list(texts), "text": list(texts.values())})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=20)
        columns = {"id": "id", "text": "text"}
        data[name] = {"path": str(folder / f"{name}.parquet"), "columns": columns}

    def make(output: Path, **groups: Any) -> PipelineSettings:
        fields: dict[str, Any] = data | {
            "model": {"template": "plain"},
            "sample": {"pool": 16, "shared_content": "keep"},
            "distill": {"epochs": 1},
            "attribute": {"top_k": 100},
            "rerank": {"candidates": 100},
        }
        return make_settings(output, **(fields | groups))

    pipeline.run(make(folder / "run"), stages=UP_TO_ATTRIBUTE, console=QUIET)

    def copied(output: Path, **groups: Any) -> PipelineSettings:
        shutil.copytree(folder / "run", output)
        return make(output, **groups)

    return copied


@pytest.fixture(scope="module")
def reranked(
    attributed: Callable[..., PipelineSettings], tmp_path_factory: pytest.TempPathFactory
) -> PipelineSettings:
    """The settings of a run up to `rerank`; its output is read only."""
    settings = attributed(tmp_path_factory.mktemp("reranked") / "run")
    pipeline.run(settings, stages=("attribute", "rerank"), console=QUIET)
    return settings


@pytest.fixture(scope="module")
def direct(reranked: PipelineSettings) -> Mapping[tuple[str, str], float]:
    """Influence by sketches of one example at a time, computed without any stage, by query and example."""
    device = torch.device("cpu")
    teacher = Teacher.load(reranked.model, reranked.adapter, seed=reranked.seed, device=device)
    sketch = CountSketch(reranked.sketch.width, reranked.seed)

    def unit(texts: Mapping[str, str]) -> dict[str, np.ndarray]:
        found = {}
        for name, text in texts.items():
            (tokens,) = teacher.tokens([Example(name, "", text.strip(), "")])
            if tokens.labelled:
                vector = teacher.sketch([tokens], sketch).sketches[0].astype(np.float64)
                found[name] = vector / np.linalg.norm(vector)
        return found

    queries, corpus = unit(QUERIES), unit(CORPUS)
    assert queries.keys() == QUERIES.keys() - {"qz"}
    assert corpus.keys() == CORPUS.keys() - {f"s{text}" for text in SINGLE}
    return {(q, c): float(queries[q] @ corpus[c]) for q in queries for c in corpus}


def test_the_order_is_that_of_directly_computed_sketched_influence(
    reranked: PipelineSettings, direct: Mapping[tuple[str, str], float]
) -> None:
    """Prevents a gradient under another example's id, or of another adapter, seed or sketch."""
    table = rows_of(reranked, "reranked")
    assert {row["query_id"] for row in table} == QUERIES.keys()
    moved = 0
    for query_id in QUERIES.keys() - {"qz"}:
        rows = of_query(table, query_id)
        assert [row["rank"] for row in rows] == list(range(1, len(CORPUS) + 1))
        assert {row["example_id"] for row in rows} == CORPUS.keys()
        exact = [row for row in rows if row["score"] is not None]
        expected = [direct[query_id, row["example_id"]] for row in exact]
        np.testing.assert_allclose([row["score"] for row in exact], expected, atol=5e-4)
        assert np.diff(expected).max() < 5e-4
        assert (np.diff([row["score"] for row in exact]) <= 0).all()
        moved += [row["encoder_rank"] for row in rows] != sorted(row["encoder_rank"] for row in rows)
    assert moved == len(QUERIES) - 1


def test_every_query_ranks_the_candidates_of_all(
    attributed: Callable[..., PipelineSettings], direct: Mapping[tuple[str, str], float], tmp_path: Path
) -> None:
    """Prevents a gradient paid for one query from being withheld from another that it would answer."""
    settings = attributed(tmp_path / "run", rerank={"candidates": 2})
    pipeline.run(settings, stages=("rerank",), console=QUIET)
    encoder, table = rows_of(settings, "attributions"), rows_of(settings, "reranked")
    known = {(row["query_id"], row["example_id"]): row["rank"] for row in encoder if row["rank"] <= 2}
    candidates = {row["example_id"] for row in encoder if row["rank"] <= 2 and row["query_id"] != "qz"}
    candidates -= {f"s{text}" for text in SINGLE}
    assert len(candidates) > 4
    missed = 0
    for query_id in QUERIES.keys() - {"qz"}:
        rows = of_query(table, query_id)
        exact = sorted((direct[query_id, name] for name in candidates), reverse=True)
        np.testing.assert_allclose([row["score"] for row in rows], exact[:2], atol=5e-4)
        for row in rows:
            assert row["encoder_rank"] == known.get((query_id, row["example_id"]))
            assert (row["encoder_score"] is None) == (row["encoder_rank"] is None)
            missed += row["encoder_rank"] is None
    assert missed > 0


def test_ranks_scores_and_places_of_the_encoder_stand_beside(reranked: PipelineSettings) -> None:
    """Prevents columns that were not ordered along with the scores."""
    encoder = {(row["query_id"], row["example_id"]): row for row in rows_of(reranked, "attributions")}
    table = rows_of(reranked, "reranked")
    assert len(table) == len(encoder)
    for row in table:
        held = encoder[row["query_id"], row["example_id"]]
        assert (row["encoder_rank"], row["encoder_score"]) == (held["rank"], held["score"])
        assert row["source"] == held["source"]


def test_what_has_no_gradient_is_quarantined_and_stands_behind_in_the_encoders_order(
    reranked: PipelineSettings,
) -> None:
    """Prevents an example that cannot be compared from being lost, or from passing one that was."""
    single = {f"s{text}" for text in SINGLE}
    table = rows_of(reranked, "reranked")
    for query_id in QUERIES.keys() - {"qz"}:
        behind = of_query(table, query_id)[-len(single) :]
        assert {row["example_id"] for row in behind} == single
        assert [row["score"] for row in behind] == [None] * len(single)
        ranks = [row["encoder_rank"] for row in behind]
        assert ranks == sorted(ranks)
    aside = [row for row in rows_of(reranked, "quarantine") if row["stage"] == "rerank"]
    assert {row["example_id"] for row in aside} == single
    assert {row["reason"] for row in aside} == {"no token to predict"}


def test_a_query_without_sketch_keeps_the_encoders_order(reranked: PipelineSettings) -> None:
    """Prevents a query that the teacher could not use from failing the stage, or from losing its rows."""
    rows = of_query(rows_of(reranked, "reranked"), "qz")
    assert [row["encoder_rank"] for row in rows] == [row["rank"] for row in rows]
    assert len(rows) == len(CORPUS)
    assert {row["score"] for row in rows} == {None}


def test_contents_under_two_ids_have_one_score(reranked: PipelineSettings) -> None:
    """Prevents duplicates, of which corpora are full, from being paid for twice and scored apart."""
    table = rows_of(reranked, "reranked")
    for number in range(len(TWINS)):
        scores = [
            {row["query_id"]: row["score"] for row in table if row["example_id"] == name}
            for name in (f"c{number:02}", f"twin{number}")
        ]
        assert scores[0] == scores[1]


def test_each_different_candidate_is_sketched_once_and_those_of_the_sample_not_at_all(
    attributed: Callable[..., PipelineSettings],
    reranked: PipelineSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents gradients, which are what re-ranking costs, from being computed again for every query."""
    settings = attributed(tmp_path / "run")
    taught: list[tuple[int, ...]] = []
    sketch = Teacher.sketch

    def counted(teacher: Teacher, tokens: Any, *rest: Any, **more: Any) -> Any:
        taught.extend(tuple(t.ids) for t in tokens)
        return sketch(teacher, tokens, *rest, **more)

    def here(plan: units_on_ray.WorkPlan, *_: Any) -> dict[str, Any]:
        """The plan's units, one after the other in this process, where the teacher's rows can be counted."""
        assert {unit.table for unit in plan.units} == {plan.arguments["pool_table"]}
        work = plan.work(**plan.arguments)
        for unit in plan.units:
            plan.state.commit(unit.unit_id, work.process(unit, work.read(unit), lambda rows: None), 0.0)
        return {unit.unit_id: plan.state.manifests()[unit.unit_id] for unit in plan.units}

    monkeypatch.setattr(Teacher, "sketch", counted)
    monkeypatch.setattr(units_on_ray, "run_units", here)
    pipeline.run(settings, stages=("rerank",), console=QUIET)
    sampled = {row["content_hash"] for row in rows_of(settings, "sketches/pool")}
    usable = {content_of(name) for name in CORPUS if CORPUS[name] not in SINGLE}
    assert 5 < len(sampled) < len(usable) - 5
    assert len(taught) == len(set(taught)) == len(usable - sampled)
    assert {row["content_hash"] for row in rows_of(settings, "sketches/candidates")} == usable - sampled
    totals = rerank.state(settings.root).totals()
    assert totals is not None
    assert totals["gradient_evaluations"] == len(taught)
    assert totals["contents"] == len(usable) + len(SINGLE)
    assert totals["contents_in_sample"] == len(sampled)
    assert totals["rows_in"] == totals["rows_out"] + totals["rows_quarantined"] == totals["contents"]
    assert file_hashes(tmp_path / "run/reranked") == file_hashes(Path(reranked.output) / "reranked")


@pytest.mark.parametrize("lost", ["sketches/candidates", "reranked", rerank.CONTENTS, rerank.UNSKETCHED])
def test_a_lost_file_alone_is_made_again_to_the_same_bytes(
    reranked: PipelineSettings, tmp_path: Path, lost: str
) -> None:
    """Prevents a stage that cannot be resumed, and one that pays for all gradients again to mend one file."""
    shutil.copytree(reranked.output, tmp_path / "run")
    settings = reranked.model_copy(update={"output": str(tmp_path / "run")})
    tables = rerank.state(settings.root).tables
    before = {table: file_hashes(tmp_path / "run" / table) for table in tables}
    ages = {path: path.stat().st_mtime_ns for t in tables for path in (tmp_path / "run" / t).iterdir()}
    victim = sorted((tmp_path / "run" / lost).iterdir())[0]
    victim.unlink()
    assert not pipeline.status(settings)["rerank"]
    pipeline.run(settings, stages=("attribute", "rerank"), console=QUIET)
    assert {table: file_hashes(tmp_path / "run" / table) for table in tables} == before
    sketched = [path for path in ages if path.parent.name == "candidates"]
    assert [p for p in sketched if p.stat().st_mtime_ns != ages[p]] == [victim] * (victim in sketched)


def test_the_preconditioner_is_that_of_the_sample_and_passes_over_both_sides(
    reranked: PipelineSettings, tmp_path: Path
) -> None:
    """Prevents an order by plain cosines where influence, and so the encoder, is defined otherwise."""
    shutil.copytree(reranked.output, tmp_path / "run")
    mixed = reranked.influence.model_copy(update={"preconditioner": "mixed_hessian", "damping": 0.3})
    settings = reranked.model_copy(update={"output": str(tmp_path / "run"), "influence": mixed})
    manifest = order(settings, rerank.state(settings.root), "another", 1)
    vectors: dict[str, dict[str, np.ndarray]] = {}
    training: dict[str, list[np.ndarray]] = {"queries": [], "pool": [], "candidates": []}
    for side in training:
        vectors[side] = {}
        for row in rows_of(settings, f"sketches/{side}"):
            unit = np.frombuffer(row["sketch"], np.float16).astype(np.float32)
            vectors[side][row["example_id" if side == "queries" else "content_hash"]] = unit
            if row["split"] == "train":
                training[side].append(unit * row["sketch_norm"])
    assert training["candidates"] == []
    hessian = MixedHessian.fit(
        np.stack(training["queries"]),
        np.stack(training["pool"]),
        mixing=mixed.mixing,
        damping=mixed.damping,
    )
    features = {
        side: dict(zip(held, hessian.apply(np.stack(list(held.values()))), strict=True))
        for side, held in vectors.items()
    }
    candidates = features["pool"] | features["candidates"]
    differences = []
    plain = {(row["query_id"], row["example_id"]): row["score"] for row in rows_of(settings, "reranked")}
    for row in pq.read_table(Path(settings.output) / manifest.files[0].path).to_pylist():
        if row["score"] is not None:
            expected = features["queries"][row["query_id"]] @ candidates[content_of(row["example_id"])]
            assert row["score"] == pytest.approx(expected, abs=1e-5)
            differences.append(abs(plain[row["query_id"], row["example_id"]] - row["score"]))
    assert max(differences) > 0.01


OTHERS = ("_state/rerank/", "_state/report/", "reranked/", "sketches/candidates/", "report.html")
REWRITTEN = ("settings.yaml", "run_summary.json")


def test_reranking_is_added_to_a_finished_run_and_touches_nothing_else(
    finished: PipelineSettings, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Prevents a re-ranking that costs a new run, and a report that says nothing of it."""
    shutil.copytree(finished.output, tmp_path / "run")
    settings = make_settings(tmp_path / "run", rerank={"candidates": 3})
    before = file_hashes(tmp_path / "run")
    assert not [name for name in before if name.startswith(("_state/rerank", "reranked"))]
    console = Console(record=True, file=open("/dev/null", "w"), width=200)  # noqa: PTH123, SIM115
    pipeline.run(settings, console=console)
    after = file_hashes(tmp_path / "run")
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert {name for name in changed if not name.startswith(OTHERS)} <= {*REWRITTEN}
    said = console.export_text()
    assert "rerank (6 of 8)" in said
    assert "different candidates:" in said
    encoder = rows_of(settings, "attributions")
    table = rows_of(settings, "reranked")
    candidates = {row["example_id"] for row in encoder if row["rank"] <= 3}
    for query_id in {row["query_id"] for row in encoder}:
        assert [row["rank"] for row in of_query(table, query_id)] == [1, 2, 3]
        assert {row["example_id"] for row in of_query(table, query_id)} <= candidates
    summary = json.loads((tmp_path / "run/run_summary.json").read_bytes())["stages"]
    assert summary["rerank"]["contents"] == len(candidates)
    assert 0 < summary["rerank"]["gradient_evaluations"] < len(candidates)
    html = (tmp_path / "run/report.html").read_text()
    assert "3 best of each query were taken, and every query ranks them all by exact influence" in html
    assert re.search(r'<th scope="row"[^>]*>rerank</th>', html)
    # What was made is shown, and kept, also by who does not ask for it.
    plain = make_settings(tmp_path / "run")
    pipeline.run(plain, console=QUIET)
    assert (tmp_path / "run/report.html").read_text() == html


def test_the_report_shows_examples_in_exact_order_and_then_the_encoders(
    finished: PipelineSettings, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Prevents a report that ranks by the encoder what the gradient has decided otherwise."""
    from influcoder_ray.stages.work.page import contents

    shutil.copytree(finished.output, tmp_path / "run")
    settings = make_settings(tmp_path / "run", rerank={"candidates": 3})
    pipeline.run(settings, stages=("attribute", "rerank"), console=QUIET)
    shown = contents(settings)
    assert shown.reranked is not None
    assert shown.reranked.candidates == 3
    encoder, exact = rows_of(settings, "attributions"), rows_of(settings, "reranked")
    for query in shown.queries:
        first = of_query(exact, query.query_id)
        shown_before = {row["example_id"] for row in first}
        own = [row for row in of_query(encoder, query.query_id) if row["example_id"] not in shown_before]
        rest = own[:2]
        expected = [row["example_id"] for row in (*first, *rest)]
        assert [it.example_id for it in query.attributions] == expected
        assert [it.rank for it in query.attributions] == [1, 2, 3, 4, 5]
        np.testing.assert_array_equal(
            [it.score for it in query.attributions], [row["score"] for row in first] + [np.nan] * 2
        )
        places = [r["encoder_rank"] for r in first] + [r["rank"] for r in rest]
        assert [it.encoder_rank for it in query.attributions] == places
        assert [it.percentile is None for it in query.attributions] == [place is None for place in places]
    assert sorted(shown.best_scores) == sorted(row["score"] for row in encoder if row["rank"] == 1)


def test_without_candidates_the_stage_is_as_if_it_were_not_there(finished: PipelineSettings) -> None:
    """Prevents an empty table, a stage of zero units in the summary, or a line about nothing."""
    root = Path(finished.output)
    assert not (root / "reranked").exists()
    assert not (root / "_state/rerank").exists()
    assert "rerank" not in json.loads((root / "run_summary.json").read_bytes())["stages"]
    assert "rerank" not in pipeline.status(finished)
    before = file_hashes(root)
    console = Console(record=True, file=open("/dev/null", "w"), width=400)  # noqa: PTH123, SIM115
    pipeline.run(finished, console=console)
    assert "rerank" not in console.export_text()
    console = Console(record=True, file=open("/dev/null", "w"), width=400)  # noqa: PTH123, SIM115
    pipeline.run(finished, stages=("rerank",), console=console)
    assert "Nothing to do: rerank.candidates is 0" in console.export_text()
    assert file_hashes(root) == before


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"sketch": {"width": 2048}}, "sketch.width is 1024 there and 2048 here"),
        ({"seed": 5}, "seed is 0 there and 5 here"),
        ({"attribute": {"top_k": 3}}, "attribute.top_k is 7 there and 5 here"),
        ({"rerank": {"candidates": 50}}, "attribute.top_k is 7 there and 50 here"),
    ],
)
def test_settings_other_than_those_of_the_stages_before_are_refused_and_nothing_is_written(
    finished: PipelineSettings, make_settings: MakeSettings, changed: dict[str, Any], part: str
) -> None:
    """Prevents gradients of one model from being compared with those of another."""
    before = file_hashes(finished.output)
    fields: dict[str, Any] = {"rerank": {"candidates": 5}}
    with pytest.raises(UserError, match=part):
        pipeline.run(make_settings(finished.output, **(fields | changed)), stages=("rerank",), console=QUIET)
    assert file_hashes(finished.output) == before


def test_candidates_change_the_search_only_where_it_keeps_too_few(
    finished: PipelineSettings, make_settings: MakeSettings
) -> None:
    """Prevents a second search of the corpus for nothing, and a re-ranking of fewer than were asked for."""
    from influcoder_ray.stages import attribute

    plain = attribute.plan(finished).fingerprint
    within, beyond = (
        attribute.plan(make_settings(finished.output, rerank={"candidates": n})).fingerprint for n in (7, 8)
    )
    assert within == plain
    assert beyond.differences(plain) == ["attribute.top_k is 7 there and 8 here"]


def test_a_report_of_a_reranking_that_is_not_there_names_the_stage_to_run(
    finished: PipelineSettings, make_settings: MakeSettings
) -> None:
    """Prevents a report in the encoder's order where an exact one was asked for."""
    settings = make_settings(finished.output, rerank={"candidates": 5})
    with pytest.raises(UserError, match="run the rerank stage first"):
        pipeline.run(settings, stages=("report",), console=QUIET)


@pytest.mark.parametrize(
    ("arguments", "stages", "candidates"),
    [
        (["--rerank", "30"], ("attribute", "rerank"), 30),
        (["--rerank", "30", "--set", "rerank.candidates=4"], ("attribute", "rerank"), 30),
        (["--set", "rerank.candidates=4"], ("attribute",), 4),
        ([], ("attribute",), 0),
    ],
)
def test_the_command_line_option_sets_the_candidates_and_runs_both_stages(
    finished: PipelineSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    stages: tuple[str, ...],
    candidates: int,
) -> None:
    """Prevents `attribute --rerank N` from searching and then not re-ranking."""
    fields = yaml.safe_load(finished.to_yaml())
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(fields))
    seen: list[tuple[Any, ...]] = []

    def note(settings: PipelineSettings, **others: Any) -> None:
        seen.append((settings.rerank.candidates, others["stages"]))

    monkeypatch.setattr(pipeline, "run", note)
    command = ["attribute", "--config", str(tmp_path / "pipeline.yaml"), *arguments]
    assert cli.exit_status_of(lambda: cli.app(command, standalone_mode=False)) == 0
    assert seen == [(candidates, stages)]
