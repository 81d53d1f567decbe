"""The breakdown of a run's influence over the parts of its corpus, against sums over whole tables."""

import json
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from influcoder_ray import cli
from influcoder_ray.config import PipelineSettings, settings_from
from influcoder_ray.errors import UserError
from influcoder_ray.explain.breakdown import NOTHING, breakdown
from influcoder_ray.explain.show_breakdown import tell
from influcoder_ray.stages import attribute, sample
from influcoder_ray.tables import schemas
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.state import Output

ORIGINS = ["wiki", "crawl", "crawl", "books", None]
QUERIES, KEPT = 4, 3


def rows_of(file: int) -> list[dict[str, Any]]:
    """Rows of a file: of the last origin none says where it is from."""
    return [
        {
            "text": f"text {file} {row}",
            "meta": {"set": ORIGINS[(file + row) % 5], "year": 2000 + row % 3},
            "kept": row % 4 != 1,
        }
        for row in range(30)
    ]


def attributed(folder: Path, kind: str, **corpus: Any) -> tuple[PipelineSettings, pa.Table, pa.Table]:
    """A run over two files up to `attribute`, and its two tables: scores of all rows, and queries' best."""
    files = [rows_of(file) for file in range(2)]
    for name, rows in zip("ab", files, strict=True):
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=7)
        else:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"path": str(folder / f"*.{kind}"), "columns": {"text": "text"}} | corpus
    settings = settings_from(
        {
            "output": str(folder / "out"),
            "corpus": own,
            "queries": own,
            "model": {"path": "-"},
            "encoder": {"path": "-"},
        },
        source="test",
    )
    record, found = sample.state(settings.root), settings.corpus.files("corpus")
    record.begin(Fingerprint({"stage": "sample", "corpus": sample.data_fields(settings.corpus, found)}))
    record.finish({}, {})
    generator = np.random.default_rng(0)
    numbers = [row for row in range(30) if not settings.corpus.where or rows_of(0)[row]["kept"]]
    sources = [f"{name}.{kind}:{row}" for name in "ab" for row in numbers]
    scores = generator.normal(size=len(sources)).astype(np.float32) / 4
    group = pa.table(
        {
            "example_id": sources,
            "source": sources,
            "score": scores,
            "familiarity": np.full(len(sources), 50, np.float32),
        },
        schema=schemas.GROUP_INFLUENCE,
    )
    best = generator.choice(sources, (QUERIES, KEPT)).ravel()
    places = pa.table(
        {
            "query_id": np.repeat([f"q{i}" for i in range(QUERIES)], KEPT),
            "rank": np.tile(np.arange(1, KEPT + 1, dtype=np.int32), QUERIES),
            "example_id": best,
            "score": np.zeros(len(best), np.float32),
            "percentile": np.zeros(len(best), np.float32),
            "source": best,
            "familiarity": np.zeros(len(best), np.float32),
            "unfamiliar": np.zeros(len(best), bool),
        },
        schema=schemas.ATTRIBUTIONS,
    )
    record = attribute.state(settings.root)
    record.begin(Fingerprint({"stage": "attribute"}))
    # One unit is of parts of both files, as small files share one.
    for unit, (start, stop) in enumerate([(0, 20), (20, 40), (40, len(sources))]):
        record.commit(f"u{unit}", Output({attribute.GROUP: group[start:stop]}, 0, 0), 0.0)
    record.commit("closing", Output({attribute.ATTRIBUTIONS: places}, 0, 0), 0.0)
    record.finish(record.manifests(), {})
    return settings, group, places


def expected(
    group: pa.Table, places: pa.Table, value_of: Any, top: int
) -> dict[str, tuple[int, float, int, int]]:
    """By value: rows, mean score, rows among the `top` highest scores, places among queries' best."""
    scores = dict(zip(group["source"].to_pylist(), group["score"].to_pylist(), strict=True))
    bar = sorted(scores.values())[-top]
    found = {}
    for value in {value_of(source) for source in scores}:
        own = [score for source, score in scores.items() if value_of(source) == value]
        best = sum(value_of(source) == value for source in places["source"].to_pylist())
        found[value] = (len(own), float(np.mean(own)), sum(score >= bar for score in own), best)
    return found


def origin(source: str) -> str:
    name, row = source.split(":")
    return rows_of("ab".index(name[0]))[int(row)]["meta"]["set"] or NOTHING


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("where", [{}, {"kept": True}])
@pytest.mark.parametrize("by", ["meta.set", None])
def test_parts_hold_every_row_and_every_place_once(
    by: str | None, where: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    """Prevents a row from counting for its neighbour's origin, and a source's share of other rows."""
    settings, group, places = attributed(tmp_path, kind, where=where)
    found = breakdown(settings, by, top=0.1).to_pylist()
    value_of = origin if by else (lambda source: source.split(":")[0])
    truth = expected(group, places, value_of, top=-(-group.num_rows // 10))
    assert {
        row["value"]: (row["rows"], pytest.approx(row["mean_score"]), row["top_rows"], row["attributions"])
        for row in found
    } == truth
    for share in ("share_of_rows", "share_of_top", "share_of_attributions"):
        assert sum(row[share] for row in found) == pytest.approx(1)
    for row in found:
        assert row["lift"] == pytest.approx(row["share_of_top"] / row["share_of_rows"])
    assert [row["top_rows"] for row in found] == sorted((row["top_rows"] for row in found), reverse=True)


def test_the_command_prints_the_parts_and_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a table that says something else than the file beside it, or reads names as markup."""
    settings, _, _ = attributed(tmp_path, "parquet")
    (Path(settings.output) / "settings.yaml").write_text(settings.to_yaml())
    told = tmp_path / "parts.json"
    tell(settings.output, "meta.year", 0.05, told, (), Console(width=120))
    written = json.loads(told.read_text())
    printed = capsys.readouterr().out
    assert (written["by"], written["top"]) == ("meta.year", 0.05)
    assert written["parts"] == breakdown(settings, "meta.year", 0.05).to_pylist()
    for row in written["parts"]:
        assert f"{row['value']} " in printed
        assert f"{row['mean_score']:.4f}" in printed
    assert "60 rows by meta.year" in printed
    with pytest.raises(UserError, match="lies in no folder that is there"):
        tell(settings.output, None, 0.05, tmp_path / "absent/parts.json", (), Console(width=120))


@pytest.mark.parametrize(
    ("kind", "by", "top", "message"),
    [
        (
            "parquet",
            "meta.origin",
            0.1,
            r"--by: .*a\.parquet has no column 'meta.origin'; .*meta \(set, year\)",
        ),
        ("jsonl", "origin", 0.1, r"--by: .*a\.jsonl has no column 'origin'; it has text, meta, kept"),
        ("jsonl", "meta.origin", 0.1, "--by: no row of the corpus has a word or a number in 'meta.origin'"),
        ("parquet", "meta", 0.1, r"--by: 'meta' of .*a\.parquet is struct.*; name a column"),
        ("parquet", "meta.set", 0.0, "--top: 0 per cent"),
        ("parquet", "meta.set", 1.5, "--top: 150 per cent"),
        ("parquet", "text", 0.1, "--by: 'text' has more than 40 values"),
    ],
)
def test_what_is_no_part_of_the_corpus_is_refused_in_a_line(
    kind: str, by: str, top: float, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a table of one part called nothing, or of as many parts as rows."""
    monkeypatch.setattr("influcoder_ray.explain.breakdown._MOST_VALUES", 40)
    settings, _, _ = attributed(tmp_path, kind)
    with pytest.raises(UserError, match=message) as refused:
        breakdown(settings, by, top)
    assert len(str(refused.value).splitlines()) == 1


def test_another_corpus_is_refused(tmp_path: Path) -> None:
    """Prevents scores from being given to the rows that stand now where others stood."""
    settings, _, _ = attributed(tmp_path, "jsonl")
    (tmp_path / "b.jsonl").write_text((tmp_path / "a.jsonl").read_text())
    with pytest.raises(UserError, match="is not the corpus that this run has attributed"):
        breakdown(settings, "meta.set")


def test_a_run_that_is_not_attributed_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents a traceback where a stage is missing."""
    settings, _, _ = attributed(tmp_path, "parquet")
    (Path(settings.output) / "settings.yaml").write_text(settings.to_yaml())
    for name in (Path(settings.output) / "_state/attribute").iterdir():
        if name.is_file():
            name.unlink()
    status = cli.exit_status_of(lambda: cli.app(["breakdown", settings.output], standalone_mode=False))
    assert status == 2
    assert "attribute" in capsys.readouterr().err


def test_the_top_is_no_row_more_than_its_share(tmp_path: Path) -> None:
    """Prevents a share that floating point makes a little larger from counting a row too many."""
    settings, group, _ = attributed(tmp_path, "parquet")
    share = 31 / 60
    assert share * group.num_rows > 31
    assert sum(row["top_rows"] for row in breakdown(settings, None, share).to_pylist()) == 31


def test_the_top_of_hardly_any_share_is_the_first_row(tmp_path: Path) -> None:
    """Prevents a top of no rows, in which every share and every lift is not a number."""
    settings, group, _ = attributed(tmp_path, "parquet")
    found = breakdown(settings, None, 1e-9).to_pylist()
    assert sorted(row["share_of_top"] for row in found) == [0.0, 1.0]
    best = group.sort_by([("score", "descending")])["source"][0].as_py()
    assert best.startswith(f"{found[0]['value']}:")


def test_numbers_of_fixed_point_are_parts(tmp_path: Path) -> None:
    """Prevents a column of decimals, which conditions take for numbers, from being refused as none."""
    settings, _, _ = attributed(tmp_path, "parquet")
    for name in "ab":
        table = pq.read_table(tmp_path / f"{name}.parquet")
        grades = pa.array([Decimal("1.50"), Decimal("2.25")] * 15, pa.decimal128(5, 2))
        pq.write_table(table.append_column("grade", grades), tmp_path / f"{name}.parquet")
    sampled = sample.state(settings.root)
    files = settings.corpus.files("corpus")
    sampled.begin(Fingerprint({"stage": "sample", "corpus": sample.data_fields(settings.corpus, files)}))
    sampled.finish({}, {})
    found = {row["value"]: row["rows"] for row in breakdown(settings, "grade", top=0.1).to_pylist()}
    assert found == {"1.50": 30, "2.25": 30}


def test_as_many_values_as_rows_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a column of ids from being compared row by row, for minutes, before it is refused."""
    rows = 1 << 17
    sources = [f"a.parquet:{row}" for row in range(rows)]
    group = pa.table(
        {
            "example_id": sources,
            "source": sources,
            "score": np.linspace(-1, 1, rows, dtype=np.float32),
            "familiarity": np.full(rows, 50, np.float32),
        },
        schema=schemas.GROUP_INFLUENCE,
    )
    settings, _, _ = attributed(tmp_path, "parquet")
    monkeypatch.setattr("influcoder_ray.tables.state.StageState.read_each", lambda *_: iter([group]))
    monkeypatch.setattr("influcoder_ray.explain.breakdown._Column.of", lambda _, places: places)
    started = time.process_time()
    with pytest.raises(UserError, match="more than 10,000 values"):
        breakdown(settings, "text")
    assert time.process_time() - started < 3
