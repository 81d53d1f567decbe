"""Rows that no corpus should hold and every corpus does."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from material import data_table
from rich.console import Console

from influcoder_ray import pipeline
from influcoder_ray.config import PipelineSettings
from influcoder_ray.pipeline import settings_of_run
from influcoder_ray.stages import sample
from influcoder_ray.stages.corpus import corpus_files

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\xff\xfe"
# name -> (prompt, response, why it cannot be used; None where it can)
POISON: dict[str, tuple[bytes | None, bytes | None, str | None]] = {
    "null": (b"a prompt", None, "response is null"),
    "empty": (b"a prompt", b"", "response is empty"),
    "spaces": (b"a prompt", b"  \n\t ", "response is white space only"),
    "five megabytes": (b"a prompt", b"bread and water " * 330_000, None),
    "lone surrogate": (b"a prompt", b"half \xed\xa0\x80 of a pair", "response is not UTF-8 text"),
    "control characters": (b"a \x00\x07\x1b prompt", b"answer \x00\x08\x1b[31m\x7f", None),
    "only a prompt": (b"what is bread made of", b"", "response is empty"),
    "longer than the window": (b"a prompt", b"salt and flour " * 400, None),
    "an image": (PNG, PNG, "prompt is not UTF-8 text"),
    "no prompt": (None, b"an answer to nothing", "prompt is empty"),
}


JSON_LINE_THAT_IS_NONE = "poisoned.jsonl:0"
# What JSON changes: its text is Unicode by definition, so an image's bytes come as characters, and half
# of a surrogate pair can be written down, in a line that is then not read at all.
IN_JSON = {"lone surrogate": None, "an image": None}
LINE_WITH_A_LONE_SURROGATE = f"poisoned.jsonl:{1 + list(POISON).index('lone surrogate')}"


def poisoned_parquet(path: Path) -> None:
    """Good rows, then poisoned ones: bytes that call themselves strings, as broken writers leave them."""

    def unchecked(values: list[bytes | None]) -> pa.Array:
        raw = pa.array(values, pa.binary())
        return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())

    poison = {
        "id": pa.array([f"parquet {name}" for name in POISON], pa.string()),
        "prompt": unchecked([row[0] for row in POISON.values()]),
        "response": unchecked([row[1] for row in POISON.values()]),
    }
    good = data_table(60, 3, "c").select(["id", "prompt", "response"])
    pq.write_table(pa.concat_tables([good, pa.table(poison)]), path, row_group_size=16)


def poisoned_json_lines(path: Path) -> None:
    """The same as lines of JSON, after one that is none."""

    def text(value: bytes | None) -> str | None:
        return (
            None if value is None else value.decode("latin-1" if value == PNG else "utf-8", "surrogatepass")
        )

    lines = [
        json.dumps({"id": f"jsonl {name}", "prompt": text(prompt), "response": text(response)})
        for name, (prompt, response, _) in POISON.items()
    ]
    path.write_text("\n".join(["{not json", *lines]))


def reasons() -> dict[str, str]:
    """Why each row that cannot be used cannot be used, by id."""
    expected = {f"parquet {name}": why for name, (_, _, why) in POISON.items()}
    expected |= {f"jsonl {name}": IN_JSON.get(name, why) for name, (_, _, why) in POISON.items()}
    expected[JSON_LINE_THAT_IS_NONE] = "the line is not JSON"
    expected[LINE_WITH_A_LONE_SURROGATE] = "the line holds a lone surrogate, which is no Unicode text"
    return {name: why for name, why in expected.items() if why is not None}


@pytest.fixture(scope="module")
def poisoned(
    make_settings: Callable[..., PipelineSettings],
    local_ray: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The output of a run over a folder with both files."""
    folder = tmp_path_factory.mktemp("poisoned")
    (folder / "corpus").mkdir()
    poisoned_parquet(folder / "corpus/poisoned.parquet")
    poisoned_json_lines(folder / "corpus/poisoned.jsonl")
    settings = make_settings(
        folder / "out",
        corpus={"path": str(folder / "corpus")},
        sample={"pool": 80},
        sketch={"rows_per_unit": 32},
        distill={"epochs": 1},
    )
    pipeline.run(settings, console=Console(quiet=True))
    return folder / "out"


def test_the_quarantine_names_each_unusable_row_and_why(poisoned: Path) -> None:
    """A row that vanishes without a word, or takes the run with it, cannot be mended by its owner."""
    rows = pq.read_table(poisoned / "quarantine").to_pylist()
    for stage in ("sample", "embed"):
        named = {r["example_id"]: r["reason"] for r in rows if r["stage"] == stage}
        assert named.keys() == reasons().keys()
        assert all(named[name].startswith(why) for name, why in reasons().items())


def test_usable_oddities_are_sketched_embedded_and_attributed(poisoned: Path) -> None:
    """Long texts and control characters are text: setting them aside would lose data for nothing."""
    usable = {f"{kind} {name}" for name in POISON for kind in ("parquet", "jsonl")} - reasons().keys()
    usable.remove("jsonl lone surrogate")
    assert len(usable) == 7
    for table in ("embeddings", "group_influence"):
        assert usable <= {row["example_id"] for row in pq.read_table(poisoned / table).to_pylist()}
    sketches = {r["example_id"]: r for r in pq.read_table(poisoned / "sketches/pool").to_pylist()}
    # Of equal contents the sample holds one: that of the id that comes first.
    assert sketches["jsonl five megabytes"]["truncated"]
    assert sketches["jsonl longer than the window"]["truncated"]
    assert not sketches["jsonl control characters"]["truncated"]


def test_the_report_survives_them(poisoned: Path) -> None:
    """A control character in HTML, or five megabytes of it, would spoil the page for all others."""
    html = (poisoned / "report.html").read_bytes()
    assert b"\x00" not in html
    assert len(html) < 3_000_000


def test_the_later_stages_find_where_the_lines_stand_in_one_table(poisoned: Path) -> None:
    """Prevents files of lines that no two workers share, and thousands of tables read to share them."""
    settings = settings_of_run(str(poisoned), option="test")
    (table,) = (poisoned / sample.LINE_BLOCKS).glob("*.parquet")
    assert pq.read_metadata(table).num_rows
    (lines,) = (file for file in corpus_files(settings) if not file.is_parquet)
    text = Path(lines.place.path).read_bytes()
    assert sum(lines.row_groups or ()) == len(text.splitlines())
    assert lines.offsets[-1] >= len(text)
