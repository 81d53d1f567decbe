"""What is taken out, against a full sort in memory; what stays; and what a person is shown of it."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import corpus_rows, in_this_process, made_up_run, query_rows, run, vectors_of, write_corpus

from influcoder_ray.attribution.cosine import cosines
from influcoder_ray.attribution.group import group_scores
from influcoder_ray.attribution.threshold import at_threshold, with_best_f1, with_precision
from influcoder_ray.config import PipelineSettings, settings_from
from influcoder_ray.errors import UserError
from influcoder_ray.stages.work.writing import ADDED

MakeSettings = Callable[..., PipelineSettings]
Filter = Callable[..., PipelineSettings]
ROWS = {row["id"]: row for row in corpus_rows()}
IDS = list(ROWS)
BAD_LINES = {"jsonl": ["b.jsonl:3"], "small-jsonl": ["52.jsonl:3"]}
REFUSALS = {"column": "task", "values": ["refusal"]}


@pytest.fixture
def filtering(make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filter:
    """Filter with given settings, without Ray, in one folder a kind of corpus."""
    in_this_process(monkeypatch)
    pq.write_table(pa.Table.from_pylist(query_rows()), tmp_path / "queries.parquet")
    columns = {"id": "id", "prompt": "prompt", "response": "response"}

    def made(kind: str = "parquet", **settings: Any) -> PipelineSettings:
        found = make_settings(
            tmp_path / f"run-{kind}",
            corpus={"path": str(tmp_path / f"corpus-{kind}"), "columns": columns},
            queries={"path": str(tmp_path / "queries.parquet"), "columns": columns},
            embed={"rows_per_unit": 20},
            filter=settings,
        )
        if not (tmp_path / f"run-{kind}").exists():
            write_corpus(tmp_path, kind)
            made_up_run(found)
        run(found, "filter")
        return found

    return made


def rows_of(settings: PipelineSettings, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(settings.output) / name).to_pylist()
    return rows


def removed(settings: PipelineSettings) -> list[str]:
    rows = sorted(rows_of(settings, "removed"), key=lambda row: row["influcoder_rank"])
    assert [row["influcoder_rank"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["id"] for row in rows]


def card(settings: PipelineSettings) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(settings.output) / "removed/_card.json").read_bytes())
    return found


def highest(queries: list[int], *, texts: bool = False) -> np.ndarray:
    seeds = (15, 16) if texts else (5, 6)
    wide = vectors_of(len(query_rows()), seeds[0])[queries].astype(np.float32)
    rows = vectors_of(len(IDS), seeds[1]).astype(np.float32)
    return np.stack([cosines(np.repeat(q[None], len(rows), 0), rows) for q in wide]).max(axis=0)


def in_order(scores: np.ndarray) -> list[str]:
    return sorted(IDS, key=lambda name: (-scores[IDS.index(name)], name))


def labelled(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = [i for i, name in enumerate(IDS) if ROWS[name]["label"] is not None]
    return scores[known], np.array([ROWS[IDS[i]]["label"] == 1 for i in known])


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "small-parquet", "small-jsonl"])
def test_what_goes_and_what_stays_are_together_the_corpus(filtering: Filter, kind: str) -> None:
    """Prevents rows from being lost or doubled, and rows that stay from gaining or losing a column."""
    settings = filtering(kind, fraction=0.1)
    assert removed(settings) == in_order(highest(list(range(8))))[:9]
    stayed = rows_of(settings, "filtered")
    assert {row["id"] for row in stayed} == set(IDS) - set(removed(settings))
    assert all(row == ROWS[row["id"]] for row in stayed)
    for row in rows_of(settings, "removed"):
        assert {name: value for name, value in row.items() if name not in ADDED} == ROWS[row["id"]]
    set_aside = Path(settings.output) / "quarantine"
    lines = rows_of(settings, "quarantine") if set_aside.exists() else []
    assert [row["source"] for row in lines] == BAD_LINES.get(kind, [])


def test_texts_can_be_compared_in_place_of_influence(filtering: Filter) -> None:
    """Prevents a filter by texts that reads the other vectors, or a card that does not say so."""
    settings = filtering(count=12, measure="text")
    assert removed(settings) == in_order(highest(list(range(8)), texts=True))[:12]
    assert set(removed(settings)) != set(in_order(highest(list(range(8))))[:12])
    assert "in what their texts are about" in card(settings)["how"][0]
    assert settings.keeps_texts


def test_after_texts_influence_can_be_compared_again(filtering: Filter) -> None:
    """Prevents a run from having to be embedded anew, or copied, for another measure."""
    filtering(count=12, measure="text")
    settings = filtering(count=12)
    assert removed(settings) == in_order(highest(list(range(8))))[:12]
    assert not settings.keeps_texts
    assert removed(filtering(count=12, measure="text")) == in_order(highest(list(range(8)), texts=True))[:12]


def test_texts_that_were_not_kept_are_missed_in_one_line(filtering: Filter) -> None:
    """Prevents a column that is not there from failing on a worker, or influence from being taken instead."""
    filtering(count=12)
    with pytest.raises(UserError, match=r"filter\.measure is absent there"):
        filtering(count=12, measure="text")


def test_protected_queries_take_their_influence_off(filtering: Filter) -> None:
    """Prevents refusals from going with what they refuse; the formula is u - w p."""
    scores = (highest([0, 1, 3, 4, 6, 7]).astype(np.float64) - 0.5 * highest([2, 5])).astype(np.float32)
    settings = filtering(count=12, protected=REFUSALS, weight=0.5)
    assert removed(settings) == in_order(scores)[:12]
    assert {row["influcoder_query"] for row in rows_of(settings, "removed")} <= {
        "q0", "q1", "q3", "q4", "q6", "q7"
    }  # fmt: skip
    assert card(settings)["protected_queries"] == ["q2", "q5"]
    assert "less 0.5 x the same of 2 protected ones" in card(settings)["how"][0]


def test_a_mean_over_unwanted_answers_is_group_influence(filtering: Filter) -> None:
    """Prevents `by: mean` from being another score than the one of `group_influence`."""
    scores = group_scores(vectors_of(8, 5), vectors_of(len(IDS), 6))
    bar = float(np.sort(scores)[-5])
    assert removed(filtering(above=bar, by="mean")) == in_order(scores)[:5]


@pytest.mark.parametrize(
    ("kind", "precision"), [("parquet", None), ("parquet", 0.3), ("small-parquet", 0.3), ("small-jsonl", 0.3)]
)
def test_the_threshold_is_the_one_that_labelled_rows_ask_for(
    filtering: Filter, kind: str, precision: float | None
) -> None:
    """Prevents unlabelled rows from counting as wanted ones, and a threshold between two labelled rows."""
    scores = highest(list(range(8)))
    marks = labelled(scores)
    best = with_best_f1(*marks) if precision is None else with_precision(*marks, precision)
    settings = filtering(kind, labels={"column": "label"}, precision=precision)
    assert removed(settings) == [n for n in in_order(scores) if scores[IDS.index(n)] >= best.threshold]
    found = card(settings)
    assert found["threshold"] == best.threshold
    for name in ("precision", "recall", "f1", "average_precision", "labelled", "unwanted"):
        assert found["labelled_rows"][name] == getattr(best, name)


def test_labels_may_lie_in_a_file_and_then_also_judge_an_amount(filtering: Filter, tmp_path: Path) -> None:
    """Prevents a corpus from having to be written anew for a few labels."""
    known = {name: row["label"] for name, row in ROWS.items() if row["label"] is not None}
    lines = [{"id": name, "verdict": "Bad" if label else "fine"} for name, label in known.items()]
    (tmp_path / "labels.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    labels = {"column": "verdict", "unwanted": ["BAD"], "path": str(tmp_path / "labels.jsonl")}
    settings = filtering(count=10, labels=labels)
    scores = highest(list(range(8)))
    expected = at_threshold(*labelled(scores), card(settings)["threshold"])
    assert card(settings)["labelled_rows"]["recall"] == expected.recall
    assert card(settings)["threshold"] == scores[IDS.index(removed(settings)[-1])]


def test_a_label_that_is_no_number_is_none(filtering: Filter, tmp_path: Path) -> None:
    """Prevents rows that nobody looked at, NaN among numbers, from counting as rows that should stay."""
    known = [float("nan") if row["label"] is None else float(row["label"]) for row in ROWS.values()]
    pq.write_table(pa.table({"id": IDS, "verdict": np.array(known)}), tmp_path / "labels.parquet")
    labels = {"column": "verdict", "path": str(tmp_path / "labels.parquet")}
    settings = filtering(labels=labels)
    best = with_best_f1(*labelled(highest(list(range(8)))))
    assert card(settings)["labelled_rows"]["labelled"] == best.labelled
    assert card(settings)["threshold"] == best.threshold


class _Page(HTMLParser):
    """The rows of the review's tables, and every address that the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.rows += tag == "tr" and ("class", "row") in attributes
        self.addresses += [v or "" for k, v in attributes if k in ("src", "href", "srcset", "action")]


def test_the_review_shows_the_clearest_and_the_borderline_rows_and_fetches_nothing(filtering: Filter) -> None:
    """Prevents a person from judging the top alone, where nothing is in doubt."""
    settings = filtering(count=20, review_rows=9)
    order = in_order(highest(list(range(8))))
    review = rows_of(settings, "removed_review.parquet")
    by_place = {place: [r["example_id"] for r in review if r["place"] == place] for place in
                ("highest", "just taken out", "just kept")}  # fmt: skip
    assert by_place == {"highest": order[:3], "just taken out": order[17:20], "just kept": order[20:23]}
    assert [row["removed"] for row in review] == [True] * 6 + [False] * 3
    assert review[0]["percentile"] == 100
    assert review[-1]["percentile"] == pytest.approx(100 * (90 - 23) / 89)
    page = (Path(settings.output) / "removed_review.html").read_text()
    parser = _Page()
    parser.feed(page)
    assert parser.rows == 9
    assert all(address.startswith(("#", "data:")) for address in parser.addresses)
    assert "default-src 'none'" in page
    for row in review:
        assert row["response"] in page
        assert row["source"] in page
    assert not re.search(r"@import|url\(", page)


def test_few_rows_are_each_reviewed_once(filtering: Filter) -> None:
    """Prevents the same row from standing under two headings."""
    review = rows_of(filtering(count=2, review_rows=150), "removed_review.parquet")
    assert len({row["example_id"] for row in review}) == len(review) == 52


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"count": 90}, ("filter.count", "90")),
        ({"above": 3.0}, ("filter.above", "3.0", "highest")),
        ({"above": -2.0}, ("takes out all 90 rows",)),
        ({"labels": {"column": "verdict"}}, ("filter.labels.column", "'verdict'")),
        ({"labels": {"column": "id"}}, ("filter.labels", "none should go")),
        (
            {"labels": {"column": "label"}, "precision": 1.0, "by": "mean"},
            ("filter.precision", "no threshold"),
        ),
        ({"labels": {"column": "x", "path": "/nowhere"}}, ("filter.labels.path", "does not exist")),
        ({"count": 3, "protected": {"ids": ["nobody"]}}, ("filter.protected.ids", "'nobody'")),
        (
            {"count": 3, "queries": {"ids": ["q2"]}, "protected": REFUSALS},
            ("filter.protected", "'q2'", "filter.queries"),
        ),
        (
            {"count": 3, "protected": {"column": "task", "values": ["sums", "rivers", "refusal"]}},
            ("filter.protected", "every query"),
        ),
    ],
)
def test_what_cannot_be_filtered_is_said_in_one_line(
    filtering: Filter, spec: dict[str, Any], said: tuple[str, ...]
) -> None:
    """Prevents a corpus that was filtered by something else than was meant."""
    with pytest.raises(UserError) as refusal:
        filtering(**spec)
    assert all(part in str(refusal.value) for part in said), str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("group", "spec", "said"),
    [
        ("filter", {"count": 1, "above": 0.5}, "name one"),
        ("filter", {"precision": 0.5}, "name labels"),
        ("filter", {"count": 1, "protected": {}}, "names no query"),
        ("filter", {"count": 1, "queries": {"column": "task"}}, "go together"),
        ("select", {"count": 1, "fraction": 0.5}, "name one"),
        ("select", {"above": 0.5, "by": "round_robin"}, "no common score"),
        ("select", {"count": 5, "group_by": "task"}, "mean is over all"),
        ("select", {"above": 0.5, "diversity": 0.5}, "diversity goes with"),
        ("select", {"count": 5, "copies": 0, "near": 0.9}, "copies is 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    make_settings: MakeSettings, tmp_path: Path, group: str, spec: dict[str, Any], said: str
) -> None:
    """Prevents one of two settings from being ignored without a word."""
    fields = make_settings(tmp_path).model_dump(mode="json") | {group: spec}
    with pytest.raises(UserError, match=said):
        settings_from(fields, source="test")


def test_a_changed_corpus_is_refused_before_anything_is_written(filtering: Filter, tmp_path: Path) -> None:
    """Prevents rows from being taken out of another corpus than the one that was scored."""
    settings = filtering(count=3)
    shutil.rmtree(Path(settings.output) / "_state/filter")
    table = pq.read_table(tmp_path / "corpus-parquet/a.parquet")
    pq.write_table(table[1:], tmp_path / "corpus-parquet/a.parquet", row_group_size=15)
    with pytest.raises(UserError, match="holds another run: corpus"):
        run(settings, "filter")
