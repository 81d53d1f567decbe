"""The pipeline from end to end on tiny models: what lies there, what a second run does, what replays."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import sentence_transformers
import yaml
from material import file_hashes
from rich.console import Console

from influcoder_ray import pipeline
from influcoder_ray.config import PipelineSettings, load_settings
from influcoder_ray.errors import UserError

QUIET = Console(quiet=True)


def table(settings: PipelineSettings, name: str) -> list[dict]:
    return pq.read_table(Path(settings.output) / name).to_pylist()


def test_every_table_is_there_and_ids_join(finished: PipelineSettings) -> None:
    """A stage that renames or drops ids would leave attributions that point at nothing."""
    corpus = {row["id"] for row in pq.read_table(finished.corpus.path).to_pylist()}
    queries = {row["id"] for row in pq.read_table(finished.queries.path).to_pylist()}
    assert {row["example_id"] for row in table(finished, "embeddings")} == corpus
    assert {row["example_id"] for row in table(finished, "sample/pool")} < corpus
    assert {row["example_id"] for row in table(finished, "sample/queries")} == queries
    for side in ("pool", "queries"):
        sampled = {row["example_id"] for row in table(finished, f"sample/{side}")}
        assert {row["example_id"] for row in table(finished, f"sketches/{side}")} == sampled
    attributions = table(finished, "attributions")
    assert {row["query_id"] for row in attributions} == queries
    assert {row["example_id"] for row in attributions} <= corpus
    assert {row["example_id"] for row in table(finished, "group_influence")} == corpus
    for name in ("evaluation.json", "report.html", "settings.yaml", "run_summary.json"):
        assert (Path(finished.output) / name).stat().st_size > 0


def test_rows_in_are_rows_out_and_quarantined(finished: PipelineSettings) -> None:
    """A stage that loses or doubles rows would go unseen without its counts."""
    summary = json.loads((Path(finished.output) / "run_summary.json").read_bytes())["stages"]
    for stage in ("sample", "sketch", "embed", "attribute"):
        totals = summary[stage]
        assert totals["rows_in"] == totals["rows_out"] + totals["rows_quarantined"]
    assert summary["embed"]["rows_out"] == 120 + 24
    assert summary["sketch"]["rows_out"] == 60 + 24


def test_attributions_are_the_best_cosines_of_the_stored_vectors(finished: PipelineSettings) -> None:
    """A search that loses the best example, or scores another vector than the stored one, misleads."""
    vectors = {r["example_id"]: np.array(r["embedding"], np.float64) for r in table(finished, "embeddings")}
    ids = sorted(vectors)
    matrix = np.stack([vectors[i] for i in ids])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    attributions = table(finished, "attributions")
    for query in table(finished, "query_embeddings"):
        vector = np.array(query["embedding"], np.float64)
        scores = matrix @ (vector / np.linalg.norm(vector))
        rows = sorted(
            (r for r in attributions if r["query_id"] == query["example_id"]), key=lambda r: r["rank"]
        )
        assert [r["rank"] for r in rows] == list(range(1, 8))
        np.testing.assert_allclose([r["score"] for r in rows], np.sort(scores)[::-1][:7], atol=1e-6)
        np.testing.assert_allclose(
            [r["score"] for r in rows], [scores[ids.index(r["example_id"])] for r in rows], atol=1e-6
        )
        assert rows[0]["percentile"] == 100


def test_group_influence_is_the_mean_over_queries(finished: PipelineSettings) -> None:
    """A group score of another meaning than stated would rank the corpus wrongly for the query set."""
    queries = np.array([r["embedding"] for r in table(finished, "query_embeddings")], np.float64)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    scores = {r["example_id"]: r["score"] for r in table(finished, "group_influence")}
    for row in table(finished, "embeddings"):
        vector = np.array(row["embedding"], np.float64)
        expected = (queries @ (vector / np.linalg.norm(vector))).mean()
        assert scores[row["example_id"]] == pytest.approx(expected, abs=1e-6)


def test_no_content_stands_in_two_splits(finished: PipelineSettings) -> None:
    """An example in both training and test would make the reported agreement a fiction."""
    audit = json.loads((Path(finished.output) / "evaluation.json").read_bytes())["split_audit"]
    assert audit["disjoint"] is True
    assert set(audit["sizes"]) == {
        f"{side}/{split}" for side in ("queries", "pool") for split in ("train", "validation", "test")
    }
    assert all(size > 0 for size in audit["sizes"].values())


def test_evaluation_holds_every_method_and_figure(finished: PipelineSettings) -> None:
    """A missing rival would leave the encoder's figure without a yardstick."""
    evaluation = json.loads((Path(finished.output) / "evaluation.json").read_bytes())
    assert {"encoder", "untrained_encoder", "tfidf", "bm25", "random"} <= set(evaluation["methods"])
    assert evaluation["leads"].keys() == evaluation["methods"].keys() - {"encoder"}
    for figures in evaluation["methods"].values():
        assert {"aggregated_rho", "per_query_rho", "recall_at_10"} <= set(figures)
        assert all(np.isfinite(value) for pair in figures.values() for value in pair.values())
    assert evaluation["sketch_fidelity"]["rho"] > 0.8


def test_the_saved_encoder_gives_the_stored_vectors_in_sentence_transformers(
    finished: PipelineSettings,
) -> None:
    """An encoder that only our own code reads would be of no use elsewhere."""
    model = sentence_transformers.SentenceTransformer(
        str(Path(finished.output) / "encoder"), device="cpu", trust_remote_code=True
    )
    rows = pq.read_table(finished.corpus.path).to_pylist()[:20]
    theirs = model.encode([f"{row['prompt']}[SEP]{row['response']}" for row in rows])
    ours = {row["example_id"]: row["embedding"] for row in table(finished, "embeddings")}
    np.testing.assert_allclose(theirs, [ours[row["id"]] for row in rows], atol=1e-3)


def test_a_second_run_does_nothing_and_starts_no_ray(
    finished: PipelineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is done must cost seconds, not a cluster."""

    def refuse(address: str | None) -> None:
        raise AssertionError("a finished run joined a cluster")

    monkeypatch.setattr("influcoder_ray.stages.cluster.connect", refuse)
    before = file_hashes(finished.output)
    console = Console(record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    pipeline.run(finished, console=console)
    assert "Nothing to do" in console.export_text()
    assert file_hashes(finished.output) == before


def test_a_deleted_sketch_shard_alone_is_computed_again(
    finished: PipelineSettings, make_settings, tmp_path: Path
) -> None:
    """Recomputing a whole stage for one lost file would cost days; trusting a lost file, the result."""
    shutil.copytree(finished.output, tmp_path / "run")
    settings = make_settings(tmp_path / "run")
    shards = sorted((tmp_path / "run/sketches/pool").glob("*.parquet"))
    assert len(shards) >= 3
    before = file_hashes(tmp_path / "run/sketches")
    ages = {path: path.stat().st_mtime_ns for path in shards}
    shards[1].unlink()
    pipeline.run(settings, console=QUIET)
    assert file_hashes(tmp_path / "run/sketches") == before
    assert [p for p in shards if p.stat().st_mtime_ns != ages[p]] == [shards[1]]


@pytest.fixture(scope="module")
def replayed(finished: PipelineSettings, tmp_path_factory: pytest.TempPathFactory) -> PipelineSettings:
    """The same run again from its own settings.yaml, into another folder, by three workers a stage."""
    folder = tmp_path_factory.mktemp("replayed")
    fields = yaml.safe_load((Path(finished.output) / "settings.yaml").read_text())
    fields["output"] = str(folder / "run")
    for stage in ("sketch", "embed"):
        fields["workers"][stage] = {"min": 3, "max": 3, "cpus": 1}
    (folder / "settings.yaml").write_text(yaml.safe_dump(fields))
    settings = load_settings(str(folder / "settings.yaml"))
    pipeline.run(settings, console=QUIET)
    return settings


@pytest.mark.parametrize(
    "name", ["sample", "sketches", "encoder", "embeddings", "query_embeddings", "attributions"]
)
def test_three_workers_and_another_folder_give_the_same_bytes(
    finished: PipelineSettings, replayed: PipelineSettings, name: str
) -> None:
    """A table that depends on who computed it, or where it lies, could be neither resumed nor replayed."""
    assert file_hashes(Path(finished.output) / name) == file_hashes(Path(replayed.output) / name)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"sketch": {"width": 2048}}, ("sketches", "sketch.width is 1024 there and 2048 here")),
        ({"distill": {"epochs": 3}}, ("encoder", "distill.epochs is 2 there and 3 here")),
        ({"seed": 5}, ("sample", "seed is 0 there and 5 here")),
    ],
)
def test_a_folder_of_another_fingerprint_is_refused_and_untouched(
    finished: PipelineSettings, make_settings, changed: dict, names: tuple[str, ...]
) -> None:
    """Mixing two runs in one folder trains an encoder on another run's targets, silently."""
    before = file_hashes(finished.output)
    with pytest.raises(UserError) as refusal:
        pipeline.run(make_settings(finished.output, **changed), console=QUIET)
    assert all(name in str(refusal.value) for name in names)
    assert file_hashes(finished.output) == before


def test_the_report_names_queries_and_examples(finished: PipelineSettings) -> None:
    """A report without the texts would leave a person with bare ids."""
    html = (Path(finished.output) / "report.html").read_text()
    best = min(table(finished, "attributions"), key=lambda row: (row["query_id"], row["rank"]))
    assert best["example_id"] in html
    responses = {row["id"]: row["response"] for row in pq.read_table(finished.corpus.path).to_pylist()}
    assert responses[best["example_id"]] in html


def test_manifests_vouch_for_what_lies_there(finished: PipelineSettings) -> None:
    """A checksum that does not fit its file would make every later check worthless."""
    root = Path(finished.output)
    for manifest in root.glob("_state/*/units/*.json"):
        for file in json.loads(manifest.read_bytes())["files"]:
            data = (root / file["path"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
            assert len(data) == file["size_bytes"]


def test_ray_data_reads_the_tables_as_they_are(finished: PipelineSettings) -> None:
    """Whoever goes on with the vectors on the same cluster must not need our code to read them."""
    read = ray.data.read_parquet(str(Path(finished.output) / "embeddings")).take_all()
    stored = {row["example_id"]: row["embedding"] for row in table(finished, "embeddings")}
    assert {row["example_id"] for row in read} == stored.keys()
    assert all(np.array_equal(row["embedding"], stored[row["example_id"]]) for row in read)
