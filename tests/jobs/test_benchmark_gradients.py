"""`jobs/benchmark.py gradients`: its figures, its references and its refusals, on tiny models."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import benchmark
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchmarks.bergson import collection_seconds, run_bergson
from benchmarks.measure import one_pass
from benchmarks.one_at_a_time import one_at_a_time
from benchmarks.parts import UnusedSketch
from tiny import SENTENCES, causal_config, causal_lm

from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.adapter import AdapterWeights, adapter_weights, find_targets
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.gradients.teacher import Sketches, Teacher

CPU = torch.device("cpu")
ADAPTER = AdapterSpec(rank=4)
QUICK = ["--device=cpu", "--threads=1", "--rank=2", "--width=1024", "--repeats=2", "--skip-bergson"]
TOKENS = [Tokens(tuple(range(3, 3 + n)), labelled, False) for n, labelled in ((9, 4), (17, 1), (5, 4))]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Instructions of many lengths, some of them with a context. Read only."""
    sentences = SENTENCES * 3
    table = pa.table(
        {
            "instruction": [f"{number}. {text}" for number, text in enumerate(sentences)],
            "context": [text if number % 3 == 0 else None for number, text in enumerate(sentences)],
            "response": [text * (1 + number % 2) for number, text in enumerate(sentences)],
        }
    )
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(table, path)
    return path


@pytest.fixture(scope="session")
def figures(rows: Path, causal_lm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one whole run wrote. Read only."""
    file = tmp_path_factory.mktemp("figures") / "gradients.json"
    status = benchmark.main(
        [
            *("gradients", f"--model={causal_lm_folder}", f"--rows={rows}", *QUICK, f"--json={file}"),
            *("--count=12", "--min-tokens=40", "--max-tokens=72", "--one-at-a-time-count=4"),
            *("--tokens-per-batch", "80", "300", "--layout=padded", "--sketch-share"),
        ]
    )
    assert status == 0
    loaded: dict[str, Any] = json.loads(file.read_text())
    return loaded


def weights_of(model: torch.nn.Module) -> list[AdapterWeights]:
    return adapter_weights(
        find_targets(model.config, ADAPTER), ADAPTER, seed=1, device=CPU, dtype=torch.float32
    )


def test_every_promised_key_is_there_with_a_sane_value(figures: dict[str, Any]) -> None:
    """Prevents a script that reads the figures from meeting a missing key, a string or a negative speed."""
    for key in (
        "plain_tokens_per_second",
        "ours_tokens_per_second",
        "one_at_a_time_tokens_per_second",
        "ratio_to_plain",
        "ratio_to_one_at_a_time",
    ):
        assert isinstance(figures[key], float)
        assert figures[key] > 0
    # On a kernel without a record of the peak there is none, which is said by null.
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert figures["peak_memory_bytes"] > 50 * 2**20
    assert figures["model_flops_utilization"] is None
    assert figures["bergson_tokens_per_second"] is None
    assert figures["bergson_note"] == "left out"
    assert (figures["device"], figures["dtype"], figures["layout"]) == ("cpu", "float32", "padded")
    assert figures["relative_error_to_autograd"] < 1e-5
    assert figures["cosine_to_autograd"] == pytest.approx(1, abs=1e-5)
    assert figures["sketch_share"] < 1
    assert figures["rows"] == 12
    assert 12 * 40 <= figures["tokens"] <= 12 * 72
    assert 0 < figures["labelled_tokens"] < figures["tokens"]
    assert figures["one_at_a_time_rows"] == 4


def test_figures_are_those_of_the_fastest_passes_and_ratios_their_quotients(figures: dict[str, Any]) -> None:
    """Prevents a headline that the passes listed below it do not bear out."""
    names = ("plain", "ours", "ours, unsketched")
    expected = [(name, budget) for budget in (80, 300) for name in names] + [("one at a time", None)]
    assert [(part["part"], part["tokens_per_batch"]) for part in figures["parts"]] == expected
    for part in figures["parts"]:
        tokens = figures["one_at_a_time_tokens" if part["part"] == "one at a time" else "tokens"]
        by_slice = part["seconds_by_slice"]
        assert [len(seconds) for seconds in by_slice] == [2] * 4
        assert part["tokens_per_second"] == pytest.approx(tokens / sum(min(s) for s in by_slice))
    best = {
        name: max((p for p in figures["parts"] if p["part"] == name), key=lambda p: p["tokens_per_second"])
        for name in ("plain", "ours", "one at a time")
    }
    plain, ours, single = (best[name]["tokens_per_second"] for name in best)
    assert figures["plain_tokens_per_second"] == plain
    assert figures["ours_tokens_per_second"] == ours
    assert figures["one_at_a_time_tokens_per_second"] == single
    assert figures["ratio_to_plain"] == pytest.approx(ours / plain)
    assert figures["ratio_to_one_at_a_time"] == pytest.approx(ours / single)
    assert figures["ours_tokens_per_batch"] == best["ours"]["tokens_per_batch"]
    assert figures["padding_share"] == best["ours"]["padding_share"]
    assert figures["peak_memory_bytes"] == best["ours"]["peak_memory_bytes"]


def test_padding_and_batches_are_those_that_went_through_the_model(figures: dict[str, Any]) -> None:
    """Prevents speeds that count padding, and budgets that are not kept."""
    for part in figures["parts"]:
        if part["tokens_per_batch"] is None:
            assert part["padding_share"] == 0
        else:
            assert 0 <= part["padding_share"] < 1
            assert part["largest_batch"] <= part["tokens_per_batch"]
    wide = [p for p in figures["parts"] if p["tokens_per_batch"] == 300]
    assert wide[0]["padding_share"] == wide[1]["padding_share"] > 0
    assert max(p["largest_batch"] for p in wide) > 80


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16"])
def test_random_weights_need_a_config_alone(dtype: str, tmp_path: Path) -> None:
    """Prevents a shape whose weights are not at hand from being left unmeasured."""
    causal_config("qwen3").save_pretrained(tmp_path)
    file = tmp_path / "figures.json"
    before = torch.get_float32_matmul_precision()
    status = benchmark.main(
        [
            *("gradients", f"--random-weights={tmp_path / 'config.json'}", *QUICK, f"--json={file}"),
            *("--count=6", "--max-tokens=20", "--tokens-per-batch=64", f"--dtype={dtype}"),
        ]
    )
    found = json.loads(file.read_text())
    assert status == 0
    assert (found["rows"], found["tokens"], found["labelled_tokens"]) == (6, 120, 114)
    assert found["padding_share"] == 0
    assert found["random_weights"] is True
    assert found["dtype"] == dtype
    # Compared with PEFT on the same rounded weights, which bfloat16 rounds in another order.
    assert (found["relative_error_to_autograd"] > 1e-4) == (dtype == "bfloat16")
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_reference_gives_the_teachers_gradients(family: str) -> None:
    """Prevents a comparison of speeds between two ways that do not compute the same."""
    model = causal_lm(causal_config(family))
    weights = weights_of(model)
    ours = Teacher(model, None, weights, ModelSpec(path="-", tokens_per_batch=64)).gradients(TOKENS)
    with one_at_a_time(model, weights, ADAPTER, width=2**18, seed=0) as reference:
        alone = reference.gradients_of_b(TOKENS).numpy()
        sketches = reference.sketches(TOKENS).numpy()
    norms = np.linalg.norm(alone, axis=1)
    assert (np.linalg.norm(ours - alone, axis=1) <= 1e-5 * norms).all()
    # So wide a sketch has few collisions: it is as long as the gradient.
    np.testing.assert_allclose(np.linalg.norm(sketches, axis=1), norms, rtol=0.05)
    assert (np.count_nonzero(sketches, axis=1) > 0.8 * np.count_nonzero(alone, axis=1)).all()
    # Signs are in it: without them, what is in the buckets adds up to what was put in.
    assert (np.abs(sketches.sum(1) - alone.sum(1)) > 1e-3 * norms).all()


def test_after_the_reference_the_model_is_what_it_was() -> None:
    """Prevents adapters that stay in the model and slow down, or change, whatever is measured next."""
    model = causal_lm(causal_config("llama"))
    weights = weights_of(model)
    ids = torch.tensor([TOKENS[1].ids])
    names, logits = [name for name, _ in model.named_modules()], model(ids).logits
    for _ in range(2):
        with one_at_a_time(model, weights, ADAPTER, width=1024, seed=0) as reference:
            reference.sketches(TOKENS[:1])
    assert [name for name, _ in model.named_modules()] == names
    assert torch.equal(model(ids).logits, logits)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_pass_counts_what_goes_through_the_model() -> None:
    """Prevents padding that is computed from what batches should have been."""
    model = causal_lm(causal_config("gpt_neox"))
    shapes = ((2, 7), (1, 3))
    cost = one_pass(lambda: [model(torch.ones(shape, dtype=torch.long)) for shape in shapes], model, CPU)
    assert (cost.positions, cost.largest_batch) == (17, 14)
    assert cost.seconds > 0


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this kernel keeps no peak")
def test_a_peak_is_that_of_its_own_pass() -> None:
    """Prevents a hungry part from lending its peak to all that follow it."""
    model, size = causal_lm(causal_config("llama")), 200 * 2**20

    def hungry() -> None:
        model(torch.ones(1, 2, dtype=torch.long))
        torch.ones(size, dtype=torch.uint8)

    peaks = [
        one_pass(work, model, CPU).peak_memory_bytes or 0
        for work in (hungry, lambda: model(torch.ones(1, 2, dtype=torch.long)))
    ]
    assert peaks[0] - peaks[1] > 0.8 * size


def test_without_its_sketch_a_gradient_is_still_captured(causal_lm_folder: Path) -> None:
    """Prevents a sketch's share of the time that is a share of something else."""
    spec = ModelSpec(path=str(causal_lm_folder))
    teacher = Teacher.load(spec, ADAPTER, seed=0, device=CPU)
    found = teacher.sketch(TOKENS, UnusedSketch(1024, 0))
    assert not found.sketches.any()
    assert (found.gradient_norms > 0).all()


def run_quickly(model: Path, rows: Path, *options: str) -> int:
    return benchmark.main(
        [
            *("gradients", f"--model={model}", f"--rows={rows}", *QUICK),
            *("--count=4", "--max-tokens=48", "--tokens-per-batch=100", "--repeats=1", *options),
        ]
    )


def test_wrong_gradients_are_not_timed(
    rows: Path,
    causal_lm_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a fine speed of something that is not the gradient."""
    exact = Teacher.gradients

    def off(teacher: Teacher, tokens: Sequence[Tokens]) -> np.ndarray:
        return exact(teacher, tokens) * np.float32(1.01)

    monkeypatch.setattr(Teacher, "gradients", off)
    assert run_quickly(causal_lm_folder, rows, f"--json={tmp_path / 'f.json'}") == 1
    assert "differ from autograd's by 0.01" in capsys.readouterr().err
    assert not (tmp_path / "f.json").exists()


def test_plain_captures_nothing_and_takes_turns_with_ours(
    rows: Path, causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a yardstick that does per-example work, or one measured when the machine was at rest."""
    whole, captured = Teacher.sketch, []

    def watched(teacher: Teacher, *arguments: Any, **options: Any) -> Sketches:
        captured.append(len(teacher.weights))
        return whole(teacher, *arguments, **options)

    monkeypatch.setattr(Teacher, "sketch", watched)
    assert run_quickly(causal_lm_folder, rows, "--repeats=2", "--slices=2") == 0
    # Two layers of seven linear modules each; a pass to warm up and two rounds of two slices.
    assert captured == [0, 14] * 5


def test_rows_that_were_left_out_are_not_timed(
    rows: Path, causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents rows that do not fit into memory from counting as done in no time."""
    whole = Teacher.sketch

    def lacking(teacher: Teacher, *arguments: Any, **options: Any) -> Sketches:
        found = whole(teacher, *arguments, **options)
        return replace(found, losses=np.zeros_like(found.losses))

    monkeypatch.setattr(Teacher, "sketch", lacking)
    assert run_quickly(causal_lm_folder, rows) == 1
    assert "does not fit into memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        (("prompt", "response"), ()),
        (("instruction", "response"), ()),
        (("text",), ()),
        (("question", "answer"), ("--prompt", "question", "--response", "answer")),
        (("prompt", "response", "story"), ("--text", "story")),
    ],
    ids=["pair", "instruction", "text", "named-pair", "named-text"],
)
def test_usual_columns_are_found_and_others_can_be_named(
    columns: tuple[str, ...], options: tuple[str, ...], causal_lm_folder: Path, tmp_path: Path
) -> None:
    """Prevents a loss on the wrong column of a user's file."""
    table = pa.table(
        {name: [f"{text} This is what stands in {name}." for text in SENTENCES] for name in columns}
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    file = tmp_path / "figures.json"
    assert run_quickly(causal_lm_folder, tmp_path / "rows.parquet", f"--json={file}", *options) == 0
    found = json.loads(file.read_text())
    # Raw text has a loss on all but what begins it, a pair on its response alone.
    whole = found["labelled_tokens"] == found["tokens"] - found["rows"]
    assert whole == (columns == ("text",) or "story" in columns)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=MODEL"], "--rows: missing"),
        (["--random-weights=MODEL", "--rows=ROWS"], "--rows: --random-weights has no tokenizer"),
        (["--random-weights=MODEL", "--min-tokens=2000"], "--min-tokens: 2000 is more than --max-tokens"),
        (["--random-weights=ROWS/none"], "is no config.json and no folder with one"),
        (["--model=MODEL", "--rows=ROWS", "--prompt", "instruction"], "--prompt: it goes together with"),
        (["--model=MODEL", "--rows=ROWS", "--text", "body"], "has no column 'body'"),
        (["--model=MODEL", "--rows=BARE"], "say which hold what"),
        (["--model=MODEL", "--rows=ROWS", "--min-tokens=2000"], "holds 0 rows of 2000 tokens or more"),
        (["--model=MODEL", "--rows=ROWS", "--width=1000"], "--width: 1000 is no width"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    arguments: list[str],
    message: str,
    rows: Path,
    causal_lm_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a traceback, or minutes of work, before a user learns what was mistyped."""
    pq.write_table(pa.table({"body": ["words"]}), tmp_path / "bare.parquet")
    places = {"MODEL": causal_lm_folder, "ROWS": rows, "BARE": tmp_path / "bare.parquet"}
    for word, place in places.items():
        arguments = [argument.replace(word, str(place)) for argument in arguments]
    assert benchmark.main(["gradients", *QUICK, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


PROGRESS = (
    "\rComputing New worker - Collecting gradients:   0%|          | 0/5 [00:00<?, ?it/s]"
    "\rComputing New worker - Collecting gradients:  40%|████      | 2/5 [00:00<00:00, 90.10it/s]"
    "\rComputing New worker - Collecting gradients: 100%|██████████| 5/5 [00:00<00:00, {rate}]\n"
    "\rSaving the dataset (1/1 shards): 100%|██████████| 20/20 [00:00<00:00, 7668.53 examples/s]\n"
)


def test_bergsons_own_clock_is_read_from_its_last_progress_bar() -> None:
    """Prevents Bergson from being charged for its start and its saving, or for a bar half way."""
    assert collection_seconds(PROGRESS.format(rate="100.00it/s")) == pytest.approx(0.05)
    assert collection_seconds(PROGRESS.format(rate=" 2.50s/it")) == pytest.approx(12.5)
    assert collection_seconds("nothing of the kind") is None


@pytest.mark.parametrize("sound", [True, False], ids=["sound", "failing"])
def test_bergson_gets_the_same_tokens_and_its_failure_is_told(
    sound: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a comparison on other rows, and a peer's failure from passing as its absence."""
    script = tmp_path / "bergson"
    seen = tmp_path / "seen.json"
    script.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, shutil, sys\n"
        "rows = next(a for a in sys.argv if a.startswith('--dataset=')).partition('=')[2]\n"
        f"shutil.copy(rows, {str(seen)!r})\n"
        f"sys.stderr.write({PROGRESS.format(rate='10.00it/s')!r})\n"
        f"sys.exit({'0' if sound else repr('out of luck')})\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = run_bergson("model", TOKENS, dtype="float32", threads=1, window=512)
    sent = [json.loads(line) for line in seen.read_text().splitlines()]
    assert [tuple(row["input_ids"]) for row in sent] == [t.ids for t in TOKENS]
    assert [row["labels"].count(-100) for row in sent] == [t.labelled_from for t in TOKENS]
    if sound:
        assert found.tokens_per_second == pytest.approx((9 + 17 + 5) / 0.5)
    else:
        assert found.tokens_per_second is None
        assert found.note == "failed with exit status 1: out of luck"


def test_the_benchmark_needs_no_ray() -> None:
    """Prevents a bare machine with a GPU from lacking what the benchmark imports."""
    jobs = Path(__file__).resolve().parents[2] / "jobs"
    code = (
        "import sys; sys.modules['ray'] = None; "
        "import benchmark; sys.exit(benchmark.main(['gradients', '--random-weights=none']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=jobs, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "none is no config.json" in done.stderr
