"""What is selected, against a full sort in memory; all columns kept; the same bytes whoever works."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import (
    corpus_rows,
    in_this_process,
    made_up_run,
    query_rows,
    run,
    vectors_of,
    write_corpus,
)
from material import file_hashes

from influcoder_ray import cli, pipeline
from influcoder_ray.attribution.cosine import cosines
from influcoder_ray.attribution.group import group_scores
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import Stopped, UserError
from influcoder_ray.examples import Example
from influcoder_ray.examples.tokenizer import load_tokenizer
from influcoder_ray.examples.tokens import loss_tokens
from influcoder_ray.stages import embed
from influcoder_ray.stages.work.writing import ADDED, WriteWork

MakeSettings = Callable[..., PipelineSettings]
Select = Callable[..., PipelineSettings]
ROWS = {row["id"]: row for row in corpus_rows()}
IDS = list(ROWS)


@pytest.fixture(scope="module")
def embedded(
    make_settings: MakeSettings, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., PipelineSettings]:
    """Settings of runs that are finished up to `embed`, of Parquet and of JSON Lines, in copies."""
    folder = tmp_path_factory.mktemp("embedded")
    pq.write_table(pa.Table.from_pylist(query_rows()), folder / "queries.parquet")
    columns = {"id": "id", "prompt": "prompt", "response": "response"}

    def make(output: Path, kind: str, **groups: Any) -> PipelineSettings:
        data = {
            "corpus": {"path": str(folder / f"corpus-{kind}"), "columns": columns},
            "queries": {"path": str(folder / "queries.parquet"), "columns": columns},
            "embed": {"rows_per_unit": 20},
        }
        return make_settings(output, **(data | groups))

    for kind in ("parquet", "jsonl", "small-parquet", "small-jsonl"):
        write_corpus(folder, kind)
        made_up_run(make(folder / f"run-{kind}", kind))

    def copied(output: Path, kind: str = "parquet", **groups: Any) -> PipelineSettings:
        if not output.exists():
            shutil.copytree(folder / f"run-{kind}", output)
        return make(output, kind, **groups)

    return copied


@pytest.fixture
def select(
    embedded: Callable[..., PipelineSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Select:
    """Select with given settings, without Ray; the last selection in the folder is replaced."""
    in_this_process(monkeypatch)

    def selecting(kind: str = "parquet", **settings: Any) -> PipelineSettings:
        made = embedded(tmp_path / f"run-{kind}", kind, select=settings)
        run(made, "select")
        return made

    return selecting


def selected(settings: PipelineSettings) -> list[dict[str, Any]]:
    rows = pq.read_table(Path(settings.output) / "selected").to_pylist()
    return sorted(rows, key=lambda row: row["influcoder_rank"])


def ids(settings: PipelineSettings) -> list[str]:
    return [row["id"] for row in selected(settings)]


def card(settings: PipelineSettings) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(settings.output) / "selected/_card.json").read_bytes())
    return found


def content(name: str) -> str:
    return Example("", ROWS[name]["prompt"], ROWS[name]["response"], "").content_hash


def score_matrix(queries: list[int] | None = None) -> np.ndarray:
    """The cosine (Q, N) of every query with every row."""
    wide = vectors_of(len(query_rows()), 5)[queries or slice(None)].astype(np.float32)
    rows = vectors_of(len(IDS), 6).astype(np.float32)
    return np.stack([cosines(np.repeat(q[None], len(rows), 0), rows) for q in wide])


def in_order(scores: np.ndarray, *, copies: int = 1) -> list[str]:
    """All rows by score and id, with at most so many of one content."""
    taken: list[str] = []
    for name in sorted(IDS, key=lambda name: (-scores[IDS.index(name)], name)):
        if not copies or sum(content(other) == content(name) for other in taken) < copies:
            taken.append(name)
    return taken


def group_mean() -> np.ndarray:
    return group_scores(vectors_of(len(query_rows()), 5), vectors_of(len(IDS), 6))


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "small-parquet", "small-jsonl"])
def test_rows_come_with_all_their_columns_score_rank_and_nearest_query(select: Select, kind: str) -> None:
    """Prevents a training set that lost a column on the way, or whose scores are other rows'."""
    settings = select(kind, count=12)
    rows = selected(settings)
    assert [row["influcoder_rank"] for row in rows] == list(range(1, 13))
    assert [row["id"] for row in rows] == in_order(group_mean())[:12]
    scores, nearest = group_mean(), score_matrix().argmax(axis=0)
    for row in rows:
        assert {name: value for name, value in row.items() if name not in ADDED} == ROWS[row["id"]]
        assert row["influcoder_score"] == scores[IDS.index(row["id"])]
        assert row["influcoder_query"] == f"q{nearest[IDS.index(row['id'])]}"


def test_readers_of_trainers_take_the_folder_as_it_is(select: Select) -> None:
    """Prevents a card beside the data from being read as data."""
    folder = Path(select(fraction=0.2).output) / "selected"
    assert len(pandas.read_parquet(folder)) == 18
    assert duckdb.sql(f"select count(*) from '{folder}/*.parquet'").fetchall() == [(18,)]


@pytest.mark.parametrize("copies", [0, 1])
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.85])
def test_any_share_is_that_of_one_full_sort(select: Select, fraction: float, copies: int) -> None:
    """Prevents a share that is off at either end, and copies that crowd out other rows or vanish."""
    settings = select(fraction=fraction, copies=copies, candidates=1)
    wanted = max(1, int(fraction * len(IDS)))
    assert ids(settings) == in_order(group_mean(), copies=copies)[:wanted]
    assert card(settings)["rows"] == wanted


def test_the_highest_cosine_with_a_named_task_decides(select: Select) -> None:
    """Prevents queries of another task from having a say."""
    settings = select(count=9, by="max", queries={"column": "task", "values": ["sums"]})
    matrix = score_matrix([0, 3, 6, 7])
    assert ids(settings) == in_order(matrix.max(axis=0))[:9]
    assert {row["influcoder_query"] for row in selected(settings)} <= {"q0", "q3", "q6", "q7"}
    assert card(settings)["queries"] == 4


def test_groups_count_as_one_query_each(select: Select) -> None:
    """Prevents a task with many queries from outvoting one with few."""
    settings = select(count=15, by="max", group_by="task")
    queries = vectors_of(len(query_rows()), 5).astype(np.float64)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    tasks = np.array([row["task"] for row in query_rows()])
    names = ["refusal", "rivers", "sums"]
    means = np.stack([queries[tasks == name].mean(axis=0) for name in names]).astype(np.float32)
    rows = vectors_of(len(IDS), 6).astype(np.float32)
    matrix = np.stack([cosines(np.repeat(m[None], len(rows), 0), rows) for m in means])
    assert ids(settings) == in_order(matrix.max(axis=0))[:15]
    for row in selected(settings):
        assert row["influcoder_query"] == names[matrix[:, IDS.index(row["id"])].argmax()]


@pytest.mark.parametrize("count", [5, 40, 70])
def test_queries_take_turns_as_if_all_rows_were_at_hand(select: Select, count: int) -> None:
    """Prevents a round robin that hangs on how many rows were looked at; 70 of 80 contents go deep."""
    settings = select(count=count, by="round_robin", candidates=1)
    matrix, taken, owners = score_matrix(), list[str](), list[int]()
    orders = [sorted(IDS, key=lambda name: (-row[IDS.index(name)], name)) for row in matrix]
    turn = 0
    while len(taken) < count:
        contents = {content(name) for name in taken}
        owners.append(turn % len(orders))
        taken.append(next(n for n in orders[owners[-1]] if content(n) not in contents))
        turn += 1
    assert ids(settings) == taken
    for row, owner in zip(selected(settings), owners, strict=True):
        assert row["influcoder_query"] == f"q{owner}"
        assert row["influcoder_score"] == matrix[owner, IDS.index(row["id"])]


def test_tokens_are_those_of_the_causal_lm_and_never_more_than_asked(
    select: Select, causal_lm_folder: Path
) -> None:
    """Prevents a budget in words, or in another model's tokens."""
    settings = select(tokens=200)
    tokenizer = load_tokenizer(str(causal_lm_folder), setting="model.path")

    def tokens(name: str) -> int:
        example = Example("", ROWS[name]["prompt"], ROWS[name]["response"], "")
        (found,) = loss_tokens([example], tokenizer, max_tokens=48, template="plain")
        return len(found.ids)

    order = in_order(group_mean())
    sums = np.cumsum([tokens(name) for name in order])
    assert ids(settings) == order[: int((sums <= 200).sum())]
    assert card(settings)["tokens"] == sums[len(ids(settings)) - 1]
    by_column = select(tokens=50, token_column="length")
    sums = np.cumsum([ROWS[name]["length"] for name in order])
    assert ids(by_column) == order[: int((sums <= 50).sum())]


def test_a_score_is_a_bar_that_counts_as_above(select: Select) -> None:
    """Prevents the row on the bar from falling to either side by rounding."""
    scores = group_mean()
    order = in_order(scores)
    bar = float(scores[IDS.index(order[6])])
    assert ids(select(above=bar)) == order[:7]


def test_near_duplicates_are_limited_among_themselves(select: Select) -> None:
    """Prevents copies with a word changed from filling a selection."""
    rows = vectors_of(len(IDS), 6).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    taken: list[str] = []
    firsts: list[str] = []
    for name in in_order(group_mean(), copies=0):
        near = [f for f in firsts if rows[IDS.index(f)] @ rows[IDS.index(name)] >= 0.95]
        if not near:
            firsts.append(name)
            if content(name) not in {content(other) for other in taken}:
                taken.append(name)
    assert len(taken) < len(in_order(group_mean()))
    settings = select(count=20, near=0.95)
    assert ids(settings) == taken[:20]


def test_diversity_chooses_another_set_from_the_best_candidates_alone(select: Select) -> None:
    """Prevents a trade-off that reaches beyond what the card says was looked at, or does nothing."""
    plain, diverse = ids(select(count=15)), ids(select(count=15, diversity=0.7))
    assert diverse[0] == plain[0]
    assert set(diverse) != set(plain)
    assert set(diverse) <= set(in_order(group_mean())[:30])


@pytest.mark.parametrize("kind", ["small-parquet", "small-jsonl"])
@pytest.mark.parametrize(
    "spec",
    [
        {"tokens": 50, "token_column": "length"},
        {"count": 40, "by": "round_robin", "candidates": 1},
        {"count": 20, "near": 0.95, "diversity": 0.3},
    ],
)
def test_of_many_small_files_the_same_rows_are_selected(
    select: Select, kind: str, spec: dict[str, Any]
) -> None:
    """Prevents a file's rows from being taken for those of another one in its unit."""
    settings = select(kind, **spec)
    assert selected(settings) == selected(select("parquet", **spec))
    units = list((Path(settings.output) / "embeddings").glob("*.parquet"))
    assert len(units) == 5


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"count": 91}, ("select.count", "91", "90 have a score")),
        ({"count": 85}, ("select.count", "80 rows", "copies")),
        ({"tokens": 10**6}, ("select.tokens", "1,000,000", "80 rows")),
        ({"above": 2.0}, ("select.above", "2.0", "highest")),
        ({"count": 5, "queries": {"ids": ["nobody"]}}, ("select.queries.ids", "'nobody'", "q0")),
        (
            {"count": 5, "queries": {"column": "task", "values": ["cooking"]}},
            ("select.queries.values", "'cooking'", "refusal, rivers, sums"),
        ),
        ({"count": 5, "queries": {"column": "tusk", "values": ["x"]}}, ("select.queries.column", "'tusk'")),
        ({"count": 5, "by": "max", "group_by": "tusk"}, ("select.group_by", "'tusk'")),
        ({"tokens": 5, "token_column": "width"}, ("select.token_column", "'width'")),
        ({"tokens": 5, "token_column": "prompt"}, ("select.token_column", "not a number of tokens")),
    ],
)
def test_what_cannot_be_selected_is_said_in_one_line(
    select: Select, spec: dict[str, Any], said: tuple[str, ...]
) -> None:
    """Prevents a selection of less, or of something else, than was asked for."""
    with pytest.raises(UserError) as refusal:
        select(**spec)
    assert all(part in str(refusal.value) for part in said), str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_too_many_to_compare_are_refused_before_any_work(
    select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a comparison of all with all that would take days."""
    monkeypatch.setattr("influcoder_ray.stages.select.MOST_COMPARED", 20)
    with pytest.raises(UserError, match="40 candidates are too many"):
        select(count=20, near=0.9)


def test_another_choice_replaces_the_last_one_and_the_same_one_does_nothing(
    select: Select, tmp_path: Path
) -> None:
    """Prevents rows of two selections in one folder, which a trainer would read as one."""
    first = select(count=30)
    before = file_hashes(Path(first.output) / "selected")
    select(count=30)
    assert file_hashes(Path(first.output) / "selected") == before
    second = select(count=4)
    assert len(ids(second)) == 4
    assert not (file_hashes(Path(first.output) / "selected").keys() & before.keys()) - {
        "_card.json",
        "_README.md",
    }
    select(count=30)
    assert file_hashes(Path(first.output) / "selected") == before


def test_a_selection_that_was_cut_off_goes_on_to_the_same_bytes(
    select: Select, embedded: Callable[..., PipelineSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a crash half way from leaving half a training set that looks whole, or doing all again."""
    whole = file_hashes(Path(select(count=30, candidates=1).output) / "selected")
    settings = embedded(tmp_path / "again", select={"count": 30, "candidates": 1})
    process, calls = WriteWork.process, []

    def failing(self: WriteWork, unit: Any, rows: Any, report: Any) -> Any:
        calls.append(unit.unit_id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return process(self, unit, rows, report)

    with monkeypatch.context() as patch:
        patch.setattr(WriteWork, "process", failing)
        with pytest.raises(Stopped):
            run(settings, "select")
    assert not (Path(settings.output) / "selected/_card.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(WriteWork, "process", failing)
        run(settings, "select")
    assert len(calls) == len(set(calls)) + 1
    assert file_hashes(Path(settings.output) / "selected") == whole


def test_the_card_says_how_in_words_and_figures(select: Select) -> None:
    """Prevents a data set of which nobody knows any more where it came from."""
    settings = select(count=12, by="max", near=0.98)
    found = card(settings)
    assert found["settings"]["count"] == 12
    assert found["rows"] == 12
    assert sum(found["share_by_file"].values()) == pytest.approx(1)
    assert set(found["share_by_file"]) <= {"a.parquet", "b.parquet"}
    scores = [row["influcoder_score"] for row in selected(settings)]
    assert (found["lowest_score"], found["highest_score"]) == (min(scores), max(scores))
    text = (Path(settings.output) / "selected/_README.md").read_text()
    assert found["fingerprint"] in text
    assert "highest cosine with any of 8 queries" in text


def test_without_an_amount_nothing_is_selected_and_no_stage_changes(
    embedded: Callable[..., PipelineSettings], tmp_path: Path
) -> None:
    """Prevents a finished run from being made anew because a new stage exists."""
    settings = embedded(tmp_path / "run")
    assert not {"select", "filter"} & set(pipeline.wanted_stages(settings))
    asked = embedded(tmp_path / "run", select={"count": 3}, filter={"fraction": 0.1})
    wanted = pipeline.wanted_stages(asked)
    assert wanted[wanted.index("attribute") + 1 :] == ["select", "filter", "evaluate", "report"]
    assert embed.plan(settings).fingerprint.digest == embed.plan(asked).fingerprint.digest


def test_amounts_on_the_command_line_take_the_place_of_the_files(
    monkeypatch: pytest.MonkeyPatch, embedded: Callable[..., PipelineSettings], tmp_path: Path
) -> None:
    """Prevents `--count` from being refused because the file names a fraction."""
    settings = embedded(tmp_path / "run", select={"fraction": 0.5}, filter={"above": 0.5})
    (tmp_path / "pipeline.yaml").write_text(settings.to_yaml())
    seen: list[PipelineSettings] = []
    monkeypatch.setattr("influcoder_ray.pipeline.run", lambda settings, **rest: seen.append(settings))
    for command in (["select", "--count", "7", "--by", "max"], ["filter", "--fraction", "0.25"], ["select"]):
        cli.app([*command, "--config", str(tmp_path / "pipeline.yaml")], standalone_mode=False)
    assert (seen[0].select.count, seen[0].select.fraction, seen[0].select.by) == (7, None, "max")
    assert (seen[1].filter.fraction, seen[1].filter.above) == (0.25, None)
    assert seen[2].select == settings.select


@pytest.mark.long
def test_one_worker_and_three_give_the_same_bytes_on_a_finished_run(
    finished: PipelineSettings, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Prevents a training set or a filtered corpus that hangs on who wrote it; nothing else is made anew."""
    hashes = []
    for count in (1, 3):
        output = tmp_path / f"workers{count}"
        shutil.copytree(finished.output, output)
        workers = {"attribute": {"min": count, "max": count, "cpus": 1, "gpus": 0}}
        settings = make_settings(
            output,
            select={"fraction": 0.2},
            filter={"count": 10},
            workers=copy.deepcopy(finished.workers.model_dump(exclude_none=True)) | workers,
        )
        before = file_hashes(output)
        run(settings, "select", "filter")
        after = file_hashes(output)
        made = {name: value for name, value in after.items() if before.get(name) != value}
        kept = ("settings.yaml", "run_summary.json", "selected", "filtered", "removed", "_state/")
        assert all(name.startswith(kept) for name in made)
        hashes.append({n: h for n, h in made.items() if n.startswith(("selected", "filtered", "removed"))})
    assert hashes[0] == hashes[1]
    corpus = {row["id"]: row for row in pq.read_table(finished.corpus.path).to_pylist()}
    names = ("selected", "filtered", "removed")
    folders = {name: pq.read_table(output / name).to_pylist() for name in names}
    assert len(folders["selected"]) == 24
    for rows in folders.values():
        for row in rows:
            assert {k: v for k, v in row.items() if k not in ADDED} == corpus[row["id"]]
    apart = sorted(row["id"] for name in ("filtered", "removed") for row in folders[name])
    assert apart == sorted(corpus)


def test_a_corpus_that_has_a_column_of_ours_is_refused(
    embedded: Callable[..., PipelineSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a column of the user's from being overwritten."""
    in_this_process(monkeypatch)
    settings = embedded(tmp_path / "run", select={"count": 3})
    monkeypatch.setattr("influcoder_ray.stages.select.ADDED", ("extra",))
    with pytest.raises(UserError, match="'extra'"):
        run(settings, "select")
