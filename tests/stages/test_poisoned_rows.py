"""Rows that no corpus should hold and every corpus does."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import data_table
from rich.console import Console

from influcoder_ray import pipeline

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


def corpus_with_poison(path: Path, as_json: bool) -> None:
    good = data_table(60, 3, "c").select(["id", "prompt", "response"])
    if as_json:
        lines = [json.dumps(row) for row in good.to_pylist()]
        for name, (prompt, response, _) in POISON.items():
            texts = [
                None if t is None else t.decode("utf-8", "surrogatepass" if t != PNG else "latin-1")
                for t in (prompt, response)
            ]
            lines.append(json.dumps({"id": name, "prompt": texts[0], "response": texts[1]}))
        path.write_text("\n".join([*lines[:30], "{not json", *lines[30:]]))
        return
    # Bytes that call themselves strings, as broken writers leave them.
    poison = {
        "id": pa.array(list(POISON), pa.string()),
        "prompt": _unchecked([row[0] for row in POISON.values()]),
        "response": _unchecked([row[1] for row in POISON.values()]),
    }
    pq.write_table(pa.concat_tables([good, pa.table(poison)]), path, row_group_size=16)


def _unchecked(values: list[bytes | None]) -> pa.Array:
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


@pytest.fixture(scope="module", params=["parquet", "jsonl"])
def poisoned(request: pytest.FixtureRequest, make_settings, local_ray, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("poisoned")
    path = folder / f"corpus.{request.param}"
    corpus_with_poison(path, as_json=request.param == "jsonl")
    settings = make_settings(
        folder / "out", corpus={"path": str(path)}, sample={"pool": 70}, sketch={"rows_per_unit": 32}
    )
    pipeline.run(settings, console=Console(quiet=True))
    return folder / "out", request.param


def test_the_quarantine_names_each_unusable_row_and_why(poisoned: tuple[Path, str]) -> None:
    """A row that vanishes without a word, or takes the run with it, cannot be mended by its owner."""
    output, kind = poisoned
    rows = pq.read_table(output / "quarantine").to_pylist()
    for stage in ("sample", "embed"):
        named = {r["example_id"]: r["reason"] for r in rows if r["stage"] == stage}
        expected = {name: why for name, (_, _, why) in POISON.items() if why is not None}
        if kind == "jsonl":
            expected["lone surrogate"] = "response holds a lone surrogate, which is no Unicode text"
            # JSON text is Unicode by definition: the image's bytes came as characters.
            del expected["an image"]
            expected["corpus.jsonl:30"] = "the line is not JSON"
        assert named.keys() == expected.keys()
        assert all(named[name].startswith(why) for name, why in expected.items())


def test_usable_oddities_are_sketched_embedded_and_attributed(poisoned: tuple[Path, str]) -> None:
    """Long texts and control characters are text: setting them aside would lose data for nothing."""
    output, _ = poisoned
    usable = {name for name, (_, _, why) in POISON.items() if why is None}
    for table in ("embeddings", "group_influence", "sketches/pool"):
        assert usable <= {row["example_id"] for row in pq.read_table(output / table).to_pylist()}
    sketches = {r["example_id"]: r for r in pq.read_table(output / "sketches/pool").to_pylist()}
    assert sketches["five megabytes"]["truncated"]
    assert sketches["longer than the window"]["truncated"]
    assert not sketches["control characters"]["truncated"]


def test_the_report_survives_them(poisoned: tuple[Path, str]) -> None:
    """A control character in HTML, or five megabytes of it, would spoil the page for all others."""
    html = (poisoned[0] / "report.html").read_bytes()
    assert b"\x00" not in html
    assert len(html) < 3_000_000
