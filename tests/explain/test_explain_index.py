"""An index finds what it says that it finds, and is of this run's embeddings."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from embedded_corpus import embedded

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.explain import indexing
from influcoder_ray.explain.index import ABOUT, About, Index, part_of
from influcoder_ray.explain.indexing import build_index
from influcoder_ray.explain.search import search

ROWS, WIDTH, QUERIES = 3000, 16, 30


def run_of(folder: Path, *, kind: str = "float16", seed: int = 0, seen: str = "embed") -> PipelineSettings:
    """Settings of a run that holds embeddings of a clustered corpus, in shards of 700, and of queries."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(60, WIDTH))

    def units(count: int) -> np.ndarray:
        vectors = centres[rng.integers(60, size=count)] + 0.5 * rng.normal(size=(count, WIDTH))
        found: np.ndarray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return found

    corpus, queries = units(ROWS), units(QUERIES)
    shards = np.split(corpus, range(700, ROWS, 700))
    return embedded(folder, shards, queries=queries, kind=kind, seen=seen)


def asked(seed: int = 5) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)
    return vector / np.linalg.norm(vector)


def through_all(folder: Path, settings: PipelineSettings) -> Index:
    """The index of a folder, which looks through every list."""
    about = About(**json.loads((folder / ABOUT).read_bytes()))
    (folder / ABOUT).write_text(json.dumps(vars(replace(about, probes=about.lists))))
    return Index(folder, settings)


@pytest.mark.parametrize(("most", "least"), [(7, 0), (20, 5), (ROWS, ROWS)])
def test_through_all_its_lists_an_index_finds_what_the_exact_search_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, least: int
) -> None:
    """Prevents lost parts, numbers that name other rows, other scores, and ends that are turned round."""
    # Several parts, cut neither where shards are nor where blocks are.
    monkeypatch.setattr(indexing, "_ROWS_OF_A_PART", 1000)
    settings = run_of(tmp_path)
    build_index(settings, tmp_path / "index", recall=0.5)
    found = through_all(tmp_path / "index", settings).search(asked(), most=most, least=least)
    exact = search(settings, asked(), most=most, least=least)
    assert found.rows == exact.rows == ROWS
    for ours, theirs in ((found.most, exact.most), (found.least, exact.least)):
        assert [f.score for f in ours] == [f.score for f in theirs]
        assert [(f.rank, f.percentile) for f in ours] == [(f.rank, f.percentile) for f in theirs]
        assert {(f.example_id, f.source, f.familiarity) for f in ours} == {
            (f.example_id, f.source, f.familiarity) for f in theirs
        }


@pytest.mark.parametrize(("most", "least"), [(200, 3), (3, 200), (ROWS + 1, 2)])
def test_as_many_examples_are_found_as_are_wanted(tmp_path: Path, most: int, least: int) -> None:
    """Prevents lists that hold fewer from leaving places for the other end of the corpus."""
    settings = run_of(tmp_path)
    about = build_index(settings, tmp_path / "index", recall=0.01)
    assert about.probes == 1
    found = Index(tmp_path / "index", settings).search(asked(), most=most, least=least)
    assert [f.rank for f in found.most] == list(range(1, min(most, ROWS) + 1))
    assert [f.rank for f in found.least] == list(range(ROWS - least + 1, ROWS + 1))


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_an_index_reaches_the_recall_that_was_asked_for_without_looking_through_all(
    tmp_path: Path, kind: str
) -> None:
    """Prevents a recall that is measured against something else, or reached by looking everywhere."""
    settings = run_of(tmp_path, kind=kind)
    about = build_index(settings, tmp_path / "index", recall=0.9)
    assert about.rows == ROWS
    assert about.queries == QUERIES
    assert 0.9 <= about.recall <= 1
    assert about.probes < about.lists
    few = build_index(settings, tmp_path / "few", recall=0.01)
    assert few.probes == 1
    assert few.recall < about.recall
    hits = []
    index = Index(tmp_path / "index", settings)
    for seed in range(30):
        exact = {f.example_id for f in search(settings, asked(seed), most=20).most}
        hits.append(len(exact & {f.example_id for f in index.search(asked(seed), most=20).most}) / 20)
    # Queries of another kind than the run's: the order of magnitude is what it said.
    assert np.mean(hits) > few.recall


def test_an_index_is_made_anew_in_place_of_the_one_before(tmp_path: Path) -> None:
    """Prevents an old half beside a new one, and leftovers of the making."""
    settings = run_of(tmp_path)
    first = build_index(settings, tmp_path / "index", recall=0.9)
    written = part_of(tmp_path / "index", 0).read_bytes()
    assert build_index(settings, tmp_path / "index", recall=0.9) == first
    assert part_of(tmp_path / "index", 0).read_bytes() == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "out"]
    assert len(list((tmp_path / "index").iterdir())) == 2


def test_an_index_of_other_embeddings_is_refused(tmp_path: Path) -> None:
    """Prevents numbers of rows from naming rows of another embedding."""
    build_index(run_of(tmp_path / "old", seen="other"), tmp_path / "index", recall=0.9)
    settings = run_of(tmp_path / "new")
    with pytest.raises(UserError, match="was made of other embeddings"):
        Index(tmp_path / "index", settings)
    with pytest.raises(UserError, match="holds no index"):
        Index(tmp_path / "nowhere", settings)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    """Prevents somebody's files from being removed to make room for an index."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there and is no index"):
        build_index(run_of(tmp_path), tmp_path / "notes", recall=0.9)
    assert (tmp_path / "notes/mine.txt").read_text() == "mine"
