"""A run that keeps the foremost directions of its vectors alone, from the encoder of the finished run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import in_this_process, run

from influcoder_ray import Attributor, cli
from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.head import FOLDER
from influcoder_ray.errors import UserError
from influcoder_ray.stages import distill, embed, evaluate, validate
from influcoder_ray.stages.signals import read_signals
from influcoder_ray.stages.work.evaluation import distilled_scores

KEPT = 16
TABLES = ("embeddings", "query_embeddings")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.get_gpu_ids", list)


def copied(finished: PipelineSettings, folder: Path) -> PipelineSettings:
    """A copy of the finished run that has not been embedded yet."""
    shutil.copytree(finished.output, folder)
    for left in (*TABLES, "attributions", "group_influence", "_state/embed", "_state/attribute"):
        shutil.rmtree(folder / left)
    return finished.model_copy(update={"output": str(folder)})


def untrained_was_kept(settings: PipelineSettings) -> None:
    """Leave the encoder that a distillation leaves of which no epoch agreed better: without a head."""
    record, encoder = distill.state(settings.root), Path(settings.output) / distill.ENCODER
    made = record.finished()
    shutil.rmtree(encoder / FOLDER)
    files = {
        f"{distill.ENCODER}/{path.name}": path.read_bytes() for path in encoder.iterdir() if path.is_file()
    }
    shutil.rmtree(Path(settings.output) / "_state/distill")
    record.begin(made)
    record.finish({"encoder": record.commit_files("encoder", files, seconds=0.0, counters={})}, {})


def keeping(settings: PipelineSettings, dimensions: int | None) -> PipelineSettings:
    kept = settings.embed.model_copy(update={"dimensions": dimensions})
    return settings.model_copy(update={"embed": kept})


@pytest.fixture(scope="module")
def shorter(finished: PipelineSettings, tmp_path_factory: pytest.TempPathFactory) -> PipelineSettings:
    """The settings of a run up to `attribute` with vectors of 16 directions; read only."""
    settings = keeping(copied(finished, tmp_path_factory.mktemp("shorter") / "run"), KEPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.get_gpu_ids", list)
        in_this_process(patch)
        run(settings, "embed", "attribute")
    return settings


def table(settings: PipelineSettings, name: str) -> pa.Table:
    return pq.read_table(Path(settings.output) / name).sort_by("example_id")


def vectors(settings: PipelineSettings, name: str) -> np.ndarray:
    return np.array(table(settings, name)["embedding"].to_pylist(), np.float32)


@pytest.mark.parametrize("name", TABLES)
def test_the_stage_keeps_the_foremost_numbers_of_both_sides_and_says_so(
    finished: PipelineSettings, shorter: PipelineSettings, name: str
) -> None:
    """Prevents queries of another width than the corpus, vectors that are no longer of length one, and files
    of which nobody knows what their numbers are."""
    files = sorted((Path(shorter.output) / name).glob("*.parquet"))
    for file in files:
        schema = pq.read_schema(file)
        assert schema.field("embedding").type == pa.list_(pa.float16(), KEPT + 2)
        assert schema.metadata[b"foremost_dimensions"] == str(KEPT).encode()
    found, whole = vectors(shorter, name), vectors(finished, name)
    np.testing.assert_allclose(found[:, :KEPT], whole[:, :KEPT], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=2e-3)
    assert table(shorter, name).column("familiarity") == table(finished, name).column("familiarity")
    assert b"foremost_dimensions" not in pq.read_table(Path(finished.output) / name).schema.metadata


def test_the_search_scores_by_what_is_kept_of_the_prediction(shorter: PipelineSettings) -> None:
    """Prevents the numbers that fill a vector up from having a part in a score."""
    queries, corpus = (
        dict(zip(table(shorter, name)["example_id"].to_pylist(), vectors(shorter, name), strict=True))
        for name in reversed(TABLES)
    )
    rows = pq.read_table(Path(shorter.output) / "attributions").to_pylist()
    assert len(rows) == 24 * shorter.attribute.top_k
    products = [queries[r["query_id"]][:KEPT] @ corpus[r["example_id"]][:KEPT] for r in rows]
    np.testing.assert_allclose([r["score"] for r in rows], products, atol=3e-3)


def test_the_evaluation_is_of_the_vectors_that_are_kept_by_gradients_and_by_texts(
    shorter: PipelineSettings,
) -> None:
    """Prevents figures of vectors that nobody has, and texts' vectors that are wider than gradients'."""
    queries, pool = (read_signals(shorter, side, "test") for side in ("queries", "pool"))
    scores = distilled_scores(shorter, shorter.seed, queries, pool, 1)
    of_rows = [
        dict(zip(table(shorter, name)["example_id"].to_pylist(), vectors(shorter, name), strict=True))
        for name in reversed(TABLES)
    ]
    left, right = (
        np.stack([held[e.example_id] for e in side.examples])
        for held, side in zip(of_rows, (queries, pool), strict=True)
    )
    np.testing.assert_allclose(scores["encoder"], left @ right.T, atol=3e-3)
    assert scores["encoder_by_text"].shape == scores["encoder"].shape
    assert not np.allclose(scores["encoder_by_text"], scores["encoder"], atol=1e-2)


def test_every_evaluation_says_what_fewer_dimensions_would_cost(finished: PipelineSettings) -> None:
    """Prevents a choice without the figures of the user's own data, or figures of another encoder."""
    evaluation = json.loads((Path(finished.output) / "evaluation.json").read_bytes())
    rows = evaluation["agreement_by_dimensions"]
    assert [row["dimensions"] for row in rows] == [128, 64, 32, 16, 8]
    for measure, figure in evaluation["methods"]["encoder"].items():
        assert rows[0][measure]["mean"] == pytest.approx(figure["mean"], abs=1e-4)
        assert rows[0]["loss"][measure]["mean"] == 0


def test_a_question_is_asked_with_vectors_as_the_run_keeps_them(shorter: PipelineSettings) -> None:
    """Prevents a question that no vector of the corpus can be compared with."""
    attributor = Attributor.open(shorter.output)
    query = pq.read_table(Path(shorter.output) / "sample/queries").to_pylist()[0]
    expected = [
        r
        for r in pq.read_table(Path(shorter.output) / "attributions").to_pylist()
        if r["query_id"] == query["example_id"]
    ]
    found = attributor.attribute(query["prompt"], query["response"], k=shorter.attribute.top_k)
    assert found["example_id"].to_pylist() == [row["example_id"] for row in expected]
    np.testing.assert_allclose(found["score"].to_pylist(), [row["score"] for row in expected], atol=1e-5)
    by_text = attributor.attribute(query["prompt"], query["response"], k=3, vector="text")
    assert by_text.schema.metadata[b"vector"] == b"text"


@pytest.mark.parametrize(("override", "there"), [("null", "16"), ("8", "16")])
def test_a_question_of_another_width_than_the_runs_is_refused(
    shorter: PipelineSettings, override: str, there: str
) -> None:
    """Prevents a traceback about widths from deep in the search."""
    with pytest.raises(UserError, match=rf"^embed\.dimensions: .* along {there} of"):
        Attributor.open(shorter.output, overrides=[f"embed.dimensions={override}"])


def test_an_unset_number_of_dimensions_is_in_no_fingerprint(finished: PipelineSettings) -> None:
    """Prevents folders that were made before there was the setting from being made anew."""
    asked = keeping(finished, KEPT)
    for stage in (embed, evaluate, validate):
        fields = stage.plan(finished).fingerprint.fields["embed"]
        assert "dimensions" not in fields
        changed = stage.plan(asked).fingerprint
        assert changed.fields["embed"] == fields | {"dimensions": KEPT}
        assert changed.digest != stage.plan(finished).fingerprint.digest
    assert embed.vector_fields(finished) == {"query_vectors": "gradients"}
    with pytest.raises(UserError, match=r"embed\.dimensions is absent there and 16 here"):
        embed.plan(asked).refuse_other()


def test_an_untrained_encoder_that_was_kept_is_refused_in_one_line_that_says_what_to_do(
    finished: PipelineSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents pooled numbers from being cut off, which are in no order, or a traceback in every worker."""
    settings = keeping(copied(finished, tmp_path / "run"), KEPT)
    untrained_was_kept(settings)
    (tmp_path / "settings.yaml").write_text(settings.to_yaml())
    arguments = ["embed", "--config", str(tmp_path / "settings.yaml")]
    assert cli.exit_status_of(lambda: cli.app(arguments, standalone_mode=False)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "embed.dimensions: the encoder of seed 0" in line
    assert "leave embed.dimensions out, or set distill.fall_back to false" in line
    assert not (tmp_path / "run/embeddings").exists()
    for stage in (evaluate, validate):
        with pytest.raises(UserError, match="is the untrained one, kept because"):
            stage.plan(settings)
    distill.refuse_dimensions(keeping(settings, None))


def test_more_directions_than_the_encoder_has_are_refused_by_how_many_it_has(
    finished: PipelineSettings,
) -> None:
    """Prevents settings of another encoder than the folder's from reaching the workers."""
    wide = finished.model_copy(update={"distill": finished.distill.model_copy(update={"dimensions": 512})})
    with pytest.raises(UserError, match="200 are more than the 128 of the encoder of seed 0"):
        embed.plan(keeping(wide, 200))
