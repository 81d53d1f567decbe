"""The tokens that carry influence, in the report: those of `explain`, for the examples that it shows."""

import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from material import file_hashes
from rich.console import Console

from influcoder_ray import Attributor, pipeline
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.stages import mark
from influcoder_ray.stages.work.page import contents

QUIET = Console(quiet=True)
MakeSettings = Callable[..., PipelineSettings]
REPORT = {"marked": 2, "queries": 3}


def rows_of(settings: PipelineSettings, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(settings.output) / name).to_pylist()
    return rows


@pytest.fixture(scope="module")
def marked(
    finished: PipelineSettings, make_settings: MakeSettings, tmp_path_factory: pytest.TempPathFactory
) -> PipelineSettings:
    """The settings of a finished run whose report has been asked for marks; its output is read only."""
    output = tmp_path_factory.mktemp("marked") / "run"
    shutil.copytree(finished.output, output)
    (output / "report.html").unlink()
    settings = make_settings(output, report=REPORT)
    pipeline.run(settings, stages=("mark", "report"), console=QUIET)
    return settings


def test_shares_are_those_that_explain_gives_for_the_examples_that_the_report_shows(
    marked: PipelineSettings,
) -> None:
    """Prevents shares of another pair, of the query's side, or at another place of the text."""
    held: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows_of(marked, "token_shares"):
        held[row["query_id"], row["example_id"]].append(row)
    shown = contents(marked).queries
    assert len(shown) == 3
    expected = {(q.query_id, it.example_id) for q in shown for it in q.attributions[:2]}
    assert held.keys() == expected
    attributor = Attributor.open(marked.output)
    query = shown[0]
    asked = attributor.ask(query.prompt, query.response)
    best = attributor.attribute(asked, k=2, vector="gradient")
    tokens = attributor.explain_tokens(asked, examples=best, k=2).to_pylist()
    for example_id in best["example_id"].to_pylist():
        own = [t for t in tokens if t["example_id"] == example_id and t["side"] == "example"]
        shares = held[query.query_id, example_id]
        assert shares[0]["influence"] == pytest.approx(own[0]["influence"], abs=1e-6)
        for part in ("prompt", "response"):
            of_part = [t for t in own if t["part"] == part and t["end"] > t["start"]]
            stretches = [s for s in shares if s["part"] == part]
            assert sum(s["contribution"] for s in stretches) == pytest.approx(
                sum(t["contribution"] for t in of_part), abs=1e-6
            )
            ends = {t["end"] for t in of_part}
            assert stretches
            assert {s["end"] for s in stretches} <= ends


def test_the_page_shades_them_and_says_in_words_which_are_the_strongest(marked: PipelineSettings) -> None:
    """Prevents marks that are computed and never seen, or seen by eyes alone."""
    html = (Path(marked.output) / "report.html").read_text()
    assert re.search(r'<mark class="(up|down)4">', html.split("Shaded parts")[1])
    assert "The strongest tokens, each with its share of all:" in html
    for query in contents(marked).queries:
        spans = [bool(it.prompt_spans or it.response_spans) for it in query.attributions]
        assert spans == [True, True, *[False] * (len(spans) - 2)]


def test_it_is_left_out_unless_asked_for_and_touches_no_other_stage(
    finished: PipelineSettings, marked: PipelineSettings
) -> None:
    """Prevents gradients that nobody wanted, and marks for which other stages run again."""
    assert "mark" not in pipeline.status(finished)
    assert not (Path(finished.output) / "token_shares").exists()
    own = ("_state/mark", "_state/report", "token_shares", "report.html", "settings.yaml", "run_summary.json")
    one, other = (
        {name: h for name, h in file_hashes(run.output).items() if not name.startswith(own)}
        for run in (finished, marked)
    )
    assert one == other


def test_marks_that_cannot_be_made_are_refused_before_any_work(
    finished: PipelineSettings, make_settings: MakeSettings
) -> None:
    """Prevents a report without the marks that were asked for, and shares of what is no sum over tokens."""
    with pytest.raises(UserError, match="run the mark stage first"):
        pipeline.run(make_settings(finished.output, report=REPORT), stages=("report",), console=QUIET)
    stepped = finished.model_copy(
        update={"adapter": finished.adapter.model_copy(update={"optimizer_state": "optimizer.pt"})}
    )
    with pytest.raises(UserError, match=r"^report\.marked: adapter\.optimizer_state is set"):
        mark.check(stepped)
