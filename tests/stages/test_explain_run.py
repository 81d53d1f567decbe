"""A finished run explains queries, its own and new ones, by the numbers that its stages would give."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer
from rich.console import Console
from tiny import build_causal_lm

from influcoder_ray import Attributor, cli
from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.explain.answer import Request, answer
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Teacher

ROOT = Path(__file__).resolve().parents[2]
NEW = ("bread and water", "flour salt oven river")


@pytest.fixture(scope="module")
def attributor(finished: PipelineSettings) -> Attributor:
    return Attributor.open(finished.output, answer_tokens=8)


def stored(settings: PipelineSettings, table: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(Path(settings.output) / table).to_pylist()
    return rows


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    left, right = one.astype(np.float64), other.astype(np.float64)
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def exact_gradients(settings: PipelineSettings, texts: Sequence[tuple[str, str]]) -> np.ndarray:
    """Whole gradients (N, G) of prompts and responses by the run's model."""
    teacher = Teacher.load(
        ModelSpec(path=settings.model.path, max_tokens=settings.model.max_tokens),
        AdapterSpec(rank=settings.adapter.rank),
        seed=settings.seed,
        device=torch.device("cpu"),
    )
    return teacher.gradients(teacher.tokens([Example("", *text, "") for text in texts]))


def test_a_query_of_the_run_is_answered_as_the_run_has_attributed_it(
    finished: PipelineSettings, attributor: Attributor
) -> None:
    """Prevents another vector, another search or another percentile than the stages have."""
    for query in stored(finished, "sample/queries")[:3]:
        expected = [r for r in stored(finished, "attributions") if r["query_id"] == query["example_id"]]
        found = attributor.attribute(str(query["prompt"]), str(query["response"]), k=finished.attribute.top_k)
        assert found.schema.metadata[b"vector"] == b"gradient"
        for column in ("rank", "example_id", "source", "unfamiliar"):
            assert found[column].to_pylist() == [row[column] for row in expected], column
        for column in ("score", "percentile", "familiarity"):
            values = [row[column] for row in expected]
            np.testing.assert_allclose(found[column].to_pylist(), values, atol=1e-5)


def test_both_ends_come_with_their_own_texts(finished: PipelineSettings, attributor: Attributor) -> None:
    """Prevents a text that is not the one that was found, and ends that overlap in a small corpus."""
    corpus = {row["id"]: row for row in pq.read_table(finished.corpus.path).to_pylist()}
    found = attributor.attribute(*NEW, k=4, least=3, vector="text").to_pylist()
    assert [row["rank"] for row in found] == [1, 2, 3, 4, 118, 119, 120]
    assert [row["percentile"] for row in found[:1] + found[-1:]] == [100, 0]
    for row in found:
        own = corpus[row["example_id"]]
        assert (row["prompt"], row["response"]) == (own["prompt"], own["response"])
    everything = attributor.attribute(*NEW, k=100, least=100, vector="text")
    assert everything["rank"].to_pylist() == list(range(1, 121))


def test_a_new_query_is_searched_by_its_text_or_by_its_own_gradient(
    finished: PipelineSettings, attributor: Attributor
) -> None:
    """Prevents a gradient that is not written in the head's directions, or one where texts are asked for."""
    by = {name: attributor.attribute(*NEW, k=120, vector=name) for name in ("text", "gradient")}
    assert {name: found.schema.metadata[b"vector"].decode() for name, found in by.items()} == {
        "text": "text",
        "gradient": "gradient",
    }
    by_text, by_gradient = (
        dict(zip(*(f[column].to_pylist() for column in ("example_id", "score")), strict=True))
        for f in by.values()
    )
    assert max(abs(by_text[name] - by_gradient[name]) for name in by_text) > 1e-3
    told = Attributor.open(finished.output, overrides=["embed.query_vectors=texts"])
    assert told.attribute(*NEW, k=3, vector="gradient").schema.metadata[b"vector"] == b"text"


def test_reranking_orders_candidates_by_the_cosine_of_gradients(
    finished: PipelineSettings, attributor: Attributor
) -> None:
    """Prevents stored and new gradients that do not go together, or an order that is not theirs."""
    found = attributor.rerank(*NEW, candidates=30, k=12).to_pylist()
    sampled = {row["example_id"] for row in stored(finished, "sketches/pool")}
    assert {row["example_id"] in sampled for row in found} == {True, False}
    assert [row["rank"] for row in found] == list(range(1, 13))
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True)
    query, *gradients = exact_gradients(finished, [NEW, *((r["prompt"], r["response"]) for r in found)])
    # A sketch of width 1,024 errs by some .025.
    errors = [abs(score - cosine(query, g)) for score, g in zip(scores, gradients, strict=True)]
    assert max(errors) < 0.12
    assert np.mean(errors) < 0.05
    every = attributor.rerank(*NEW, candidates=30, k=30)
    by_embeddings = attributor.attribute(*NEW, k=30, vector="gradient")
    assert sorted(every["encoder_rank"].to_pylist()) == list(range(1, 31))
    assert set(every["example_id"].to_pylist()) == set(by_embeddings["example_id"].to_pylist())


def test_reranking_gives_a_query_of_the_run_the_influence_of_its_stored_sketches(
    finished: PipelineSettings, attributor: Attributor
) -> None:
    """Prevents numbers that differ from those of the rerank stage."""
    query = stored(finished, "sample/queries")[0]
    sketches = {
        side: {
            row["example_id"]: np.frombuffer(row["sketch"], np.float16)
            for row in stored(finished, f"sketches/{side}")
        }
        for side in ("queries", "pool")
    }
    own = sketches["queries"][query["example_id"]]
    found = attributor.rerank(str(query["prompt"]), str(query["response"]), candidates=40, k=40).to_pylist()
    known = [row for row in found if row["example_id"] in sketches["pool"]]
    assert known
    for row in known:
        expected = cosine(own, sketches["pool"][row["example_id"]])
        assert row["score"] == pytest.approx(expected, abs=1e-6)


def test_tokens_add_up_to_the_exact_influence_and_name_their_characters(
    finished: PipelineSettings, attributor: Attributor
) -> None:
    """Prevents highlights that are not the influence's, or stand on other characters."""
    best = attributor.attribute(*NEW, k=3)
    rows = attributor.explain_tokens(*NEW, best, k=2).to_pylist()
    query, *gradients = exact_gradients(
        finished, [NEW, *((r["prompt"], r["response"]) for r in best.slice(0, 2).to_pylist())]
    )
    texts = {"query": dict(zip(("prompt", "response"), NEW, strict=True))}
    for example, gradient in zip(best.slice(0, 2).to_pylist(), gradients, strict=True):
        for side in ("example", "query"):
            own = [r for r in rows if (r["example_id"], r["side"]) == (example["example_id"], side)]
            assert [r["position"] for r in own] == list(range(len(own)))
            total = sum(r["contribution"] for r in own)
            assert total == pytest.approx(cosine(query, gradient), abs=1e-5)
            assert own[0]["influence"] == pytest.approx(total, abs=1e-5)
            for row in own:
                text = texts.get(side, example).get(row["part"], "")
                assert text[row["start"] : row["end"]] in row["token"]
            assert {"prompt", "response"} <= {r["part"] for r in own}


def test_with_a_preconditioner_tokens_add_up_to_the_influence_that_the_settings_define(
    finished: PipelineSettings,
) -> None:
    """Prevents highlights of a plain cosine where the run means another one."""
    mixed = Attributor.open(
        finished.output, overrides=["influence.preconditioner=mixed_hessian", "influence.damping=0.1"]
    )
    found = mixed.rerank(*NEW, candidates=10, k=3, vector="text")
    plain = Attributor.open(finished.output).rerank(*NEW, candidates=10, k=10, vector="text")
    before = dict(zip(*(plain[c].to_pylist() for c in ("example_id", "score")), strict=True))
    tokens = mixed.explain_tokens(*NEW, found).to_pylist()
    for row in found.to_pylist():
        own = [t for t in tokens if t["example_id"] == row["example_id"] and t["side"] == "example"]
        # Sketches that the run holds are rounded to float16.
        assert sum(t["contribution"] for t in own) == pytest.approx(row["score"], abs=2e-3)
        assert abs(before[row["example_id"]] - row["score"]) > 5e-3


def test_without_response_the_models_own_answer_is_explained_and_shown(
    finished: PipelineSettings, attributor: Attributor, tmp_path: Path
) -> None:
    """Prevents an answer that is explained but never seen."""
    asked = attributor.ask("bread is made of")
    assert asked.generated
    assert asked.example.response
    found = attributor.attribute(asked, k=2)
    assert found.schema.metadata[b"response"].decode() == asked.example.response
    assert found.schema.metadata[b"generated"] == b"true"
    console = Console(width=120, record=True, quiet=False, file=(tmp_path / "shown").open("w"))
    request = Request(
        finished.output, "bread is made of", None, None, 2, 5, True, tmp_path / "found.json", ()
    )
    answer(request, console)
    written = json.loads((tmp_path / "found.json").read_bytes())
    assert written["generated"] is True
    assert [len(written[name]) for name in ("most", "least", "reranked", "tokens")] == [2, 2, 2, 2]
    shown = console.export_text()
    for part in ("the model's own answer", "by exact influence", "Least influential", "tokens:"):
        assert part in shown
    for row in (*written["reranked"], *written["least"]):
        assert row["example_id"] in shown


def test_raw_text_is_explained_as_raw_text(attributor: Attributor) -> None:
    """Prevents a prompt from being made up where there is none."""
    tokens = attributor.explain_tokens(attributor.ask_text("bread flour water salt"), k=1).to_pylist()
    assert {row["part"] for row in tokens if row["side"] == "query"} <= {"response", "frame"}


def test_another_model_or_corpus_than_the_runs_is_refused(finished: PipelineSettings, tmp_path: Path) -> None:
    """Prevents gradients of one model from being compared with another's, and texts that nobody embedded."""
    other = build_causal_lm(tmp_path / "other", seed=9)
    table = pq.read_table(finished.corpus.path)
    shifted = table.set_column(0, "id", pa.array([f"x{name}" for name in table["id"].to_pylist()]))
    pq.write_table(shifted, tmp_path / "corpus.parquet")
    for override, expected in (
        (f"model.path={other}", "does not give the gradients of this run"),
        (f"model.path={tmp_path / 'gone'}", "is no folder"),
        (f"corpus.path={tmp_path / 'corpus.parquet'}", "when it was embedded"),
        (f"corpus.path={tmp_path / 'gone.parquet'}", "does not exist"),
    ):
        told = Attributor.open(finished.output, overrides=[override])
        with pytest.raises(UserError, match=expected):
            told.rerank(*NEW, candidates=3)


def test_a_query_without_a_token_of_loss_is_refused(attributor: Attributor) -> None:
    """Prevents a ranking by a gradient that is zero."""
    with pytest.raises(UserError, match="no token to predict"):
        attributor.rerank(attributor.ask_text("b"), candidates=3)


def test_a_run_without_embeddings_names_the_stage_to_run_first(
    finished: PipelineSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents an empty answer of a run that is half done."""
    (tmp_path / "settings.yaml").write_text(finished.to_yaml())
    arguments = ["explain", str(tmp_path), "--query", "a", "--response", "b"]
    assert cli.exit_status_of(lambda: cli.app(arguments, standalone_mode=False)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "run the embed stage first" in line


@pytest.fixture
def bucket() -> Iterator[str]:
    """The name of an empty bucket, with endpoint and credentials in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "test")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.delenv("AWS_PROFILE", raising=False)
            boto3.client("s3").create_bucket(Bucket="explained")
            s3fs.S3FileSystem.clear_instance_cache()
            yield "explained"
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.stop()


def test_a_run_that_lies_on_s3_gives_the_same_answer(
    finished: PipelineSettings, attributor: Attributor, bucket: str
) -> None:
    """Prevents an output folder that can be explained only where it was made."""
    s3fs.S3FileSystem().put(finished.output, f"{bucket}/moved/run", recursive=True)
    found = Attributor.open(f"s3://{bucket}/moved/run").attribute(*NEW, k=5, least=2, vector="text")
    assert found.equals(attributor.attribute(*NEW, k=5, least=2, vector="text"), check_metadata=True)
    with pytest.raises(UserError, match=r"holds no settings\.yaml"):
        Attributor.open(f"s3://{bucket}/elsewhere")


def test_nothing_of_it_needs_ray(finished: PipelineSettings, tmp_path: Path) -> None:
    """Prevents a laptop with an output folder from having to start, or even to have, Ray."""
    command = "import sys\nsys.modules['ray'] = None\nfrom influcoder_ray import cli\ncli.main()\n"
    options = ["--query", "bread", "--top", "2", "--rerank", "4", "--tokens"]
    done = subprocess.run(
        [sys.executable, "-c", command, "explain", finished.output, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "by exact influence" in done.stdout


def test_an_index_answers_as_the_embeddings_do_and_says_how_well_it_finds(
    finished: PipelineSettings, attributor: Attributor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a command whose index explain cannot open, other texts, or an approximation that is hidden."""
    folder = tmp_path / "index"
    cli.app(["index", finished.output, "--folder", str(folder), "--recall", "1"], standalone_mode=False)
    told = " ".join(capsys.readouterr().out.split())
    assert "120 examples in 3 lists" in told
    assert "found 100.0% of the 20 most and least influential" in told
    indexed = Attributor.open(finished.output, answer_tokens=8, index=folder)
    exact = attributor.attribute(*NEW, k=6, least=2, vector="text")
    found = indexed.attribute(*NEW, k=6, least=2, vector="text")
    assert found.to_pylist() == exact.to_pylist()
    assert b"index" not in exact.schema.metadata
    written = tmp_path / "answer.json"
    options = ["--query", NEW[0], "--response", NEW[1], "--index", str(folder), "--json", str(written)]
    cli.app(["explain", finished.output, *options], standalone_mode=False)
    shown = " ".join(capsys.readouterr().out.split())
    account = json.loads(written.read_text())["index"]
    assert account.startswith("A search looks through")
    assert account in shown
    assert indexed.rerank(*NEW, candidates=30, k=5).equals(attributor.rerank(*NEW, candidates=30, k=5))


def test_an_index_of_a_run_elsewhere_needs_a_folder_here(
    finished: PipelineSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents an index that is written to a store from which it cannot be searched."""
    assert cli.exit_status_of(lambda: cli.app(["index", "s3://bucket/run"], standalone_mode=False)) == 2
    assert "--folder: s3://bucket/run is not on this machine" in capsys.readouterr().err
