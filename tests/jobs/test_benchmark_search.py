"""`jobs/benchmark.py search`: that contenders agree, and one small run of all of it."""

import json
from importlib.util import find_spec
from pathlib import Path

import benchmark
import numpy as np
import pytest
from benchmarks import search
from benchmarks.vectors import VectorsSpec, corpus_files

SMALL = ["search", "--rows", "9000", "--dimensions", "32", "--queries", "7", "--top-k", "5"]


def test_a_run_tells_what_the_issue_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a figure under another key, and a search that finds something else than a full product."""
    monkeypatch.setattr(search, "_alone", search.contend)
    told = tmp_path / "search.json"
    more = ["--rows-per-file", "4000", "--threads", "1", "--cold"]
    assert benchmark.main([*SMALL, *more, "--work", str(tmp_path), "--json", str(told)]) == 0
    figures = json.loads(told.read_text())
    assert figures["ratio_to_read"] > 0
    assert figures["equal_to_numpy"] == 1
    assert figures["equal_to_faiss_flat"] == (None if find_spec("faiss") is None else 1)
    assert figures["peak_memory_bytes"] is None or figures["peak_memory_bytes"] > 0
    seconds = {c["contender"]: c["seconds"] for c in figures["contenders"]}
    assert figures["ratio_to_read"] == pytest.approx(seconds["read"] / seconds["ours"])
    assert (figures["device"], figures["threads"]) == ("cpu", 1)
    assert set(seconds) >= {"ours", "read", "products", "numpy", "copy"}


def test_vectors_are_the_same_from_one_seed_and_are_kept(tmp_path: Path) -> None:
    """Prevents two runs from measuring different corpora, or making the same one twice."""
    spec = VectorsSpec(rows=5000, dimensions=16, queries=3, rows_per_file=4500)
    first = [file.place.read_bytes() for file in corpus_files(spec, tmp_path / "a")]
    second = corpus_files(spec, tmp_path / "b")
    assert [file.row_groups for file in second] == [(4096, 404), (500,)]
    assert first == [file.place.read_bytes() for file in second]
    written = [Path(file.place.path).stat().st_mtime_ns for file in second]
    again = corpus_files(spec, tmp_path / "b")
    assert [Path(file.place.path).stat().st_mtime_ns for file in again] == written


def test_places_that_float32_cannot_tell_apart_are_equal() -> None:
    """Prevents two rows of nearly one score, in another order, from counting as a fault."""
    ids = np.array([["a", "b", "c"]], dtype=object)
    scores = np.array([[0.9, 0.5, 0.4]], np.float32)
    other = search.Best(scores + np.float32(1e-7), np.array([["a", "c", "d"]], dtype=object))
    assert search.share_equal(search.Best(scores, ids), other) == 1
    apart = search.Best(scores - np.float32(0.01), np.array([["a", "c", "d"]], dtype=object))
    assert search.share_equal(search.Best(scores, ids), apart) == pytest.approx(1 / 3)
