"""`jobs/benchmark.py embed`: its figures, what they stand for, and its refusals, on a tiny encoder."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmark
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchmarks.embed_stage import Stage
from benchmarks.material import read_examples
from tiny import SENTENCES

from influcoder_ray.encoder.familiarity import Familiarity
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.specs import EncoderSpec
from influcoder_ray.errors import UserError
from influcoder_ray.tables import schemas

QUICK = ["--device=cpu", "--threads=1", "--count=24", "--max-tokens=48", "--repeats=1", "--slices=2"]


@pytest.fixture(scope="session")
def pair_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Instructions of many lengths. Read only."""
    path = tmp_path_factory.mktemp("rows") / "pairs.parquet"
    rows = [(f"{i}. {text}", text * (1 + i % 3)) for i, text in enumerate(SENTENCES * 2)]
    pq.write_table(pa.table({"instruction": [r[0] for r in rows], "response": [r[1] for r in rows]}), path)
    return path


@pytest.fixture(scope="session")
def text_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw text, some of it longer than the window. Read only."""
    path = tmp_path_factory.mktemp("rows") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text * (1 + i)}) + "\n" for i, text in enumerate(SENTENCES)))
    return path


@pytest.fixture(scope="session")
def figures(
    pair_rows: Path, text_rows: Path, encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What one whole run wrote. Read only."""
    file = tmp_path_factory.mktemp("figures") / "embed.json"
    status = benchmark.main(
        [
            *("embed", f"--encoder={encoder_folder}", "--rows", str(pair_rows), str(text_rows), *QUICK),
            *("--tokens-per-batch", "128", "512", f"--json={file}"),
        ]
    )
    assert status == 0
    loaded: dict[str, Any] = json.loads(file.read_text())
    return loaded


def test_every_promised_key_is_there_with_a_sane_value(figures: dict[str, Any]) -> None:
    """Prevents a script that reads the figures from meeting a missing key, a string or a negative speed."""
    for key in (
        "ratio_to_bare_forward",
        "ratio_to_sentence_transformers",
        "documents_per_second",
        "stage_ratio_to_bare_forward",
    ):
        assert isinstance(figures[key], float)
        assert figures[key] > 0
    assert (figures["rows"], figures["raw_text_rows"]) == (24, 8)
    assert 0 < figures["rows_cut"] < 24
    assert figures["largest_difference_to_sentence_transformers"] < 1e-4
    assert figures["ray_ratio_to_without_ray"] is None
    assert (figures["device"], figures["dtype"], figures["threads"]) == ("cpu", "float32", 1)


def test_ratios_are_quotients_of_the_fastest_passes(figures: dict[str, Any]) -> None:
    """Prevents a headline that the passes listed below it do not bear out."""
    own = ("bare forward", "ours", "ours, as the stage")
    expected = [(name, budget) for budget in (128, 512) for name in own] + [("sentence_transformers", None)]
    assert [(part["part"], part["tokens_per_batch"]) for part in figures["parts"]] == expected

    def fastest(name: str) -> float:
        return min(
            sum(min(seconds) for seconds in part["seconds_by_slice"])
            for part in figures["parts"]
            if part["part"] == name
        )

    ours = fastest("ours")
    assert figures["ratio_to_bare_forward"] == pytest.approx(fastest("bare forward") / ours)
    assert figures["ratio_to_sentence_transformers"] == pytest.approx(fastest("sentence_transformers") / ours)
    assert figures["documents_per_second"] == pytest.approx(24 / ours)


def test_ours_computes_no_padding_and_the_bare_forward_does(figures: dict[str, Any]) -> None:
    """Prevents padding from being counted as tokens, and packing from being lost in silence."""
    padding = {part["part"]: part["padding_share"] for part in figures["parts"]}
    assert padding["ours"] == padding["ours, as the stage"] == 0
    assert 0 < padding["bare forward"] < 1


def test_without_sentence_transformers_the_others_are_measured(
    pair_rows: Path,
    encoder_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a package that is no dependency from being one."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    file = tmp_path / "embed.json"
    status = benchmark.main(
        [
            *("embed", f"--encoder={encoder_folder}", f"--rows={pair_rows}", *QUICK[:2]),
            *("--count=6", "--max-tokens=48", "--repeats=1", "--slices=1", f"--json={file}"),
        ]
    )
    assert status == 0
    figures = json.loads(file.read_text())
    assert figures["ratio_to_sentence_transformers"] is None
    assert figures["ratio_to_bare_forward"] > 0
    assert "not installed here, and left out" in capsys.readouterr().err


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert benchmark.main(["embed", *arguments]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_used_is_refused_in_one_line(
    pair_rows: Path, encoder_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a traceback, or minutes of work before the first word."""
    encoder, rows = f"--encoder={encoder_folder}", f"--rows={pair_rows}"
    assert "fewer than 1000; lower --count" in refused([encoder, rows, "--max-tokens=48"], capsys)
    assert "goes together with --response" in refused(
        [encoder, rows, "--max-tokens=48", "--prompt", "instruction"], capsys
    )
    assert "is no folder" in refused(["--encoder=missing", rows], capsys)


def test_rows_are_taken_in_turn_until_a_path_has_no_more(pair_rows: Path, text_rows: Path) -> None:
    """Prevents "mixed" rows that are all of the first file."""
    examples = read_examples([str(pair_rows), str(text_rows)], None, count=20)
    assert [e.is_raw_text for e in examples[:16]] == [False, True] * 8
    assert not any(e.is_raw_text for e in examples[16:])
    with pytest.raises(UserError, match="holds 24 usable rows"):
        read_examples([str(pair_rows), str(text_rows)], None, count=25)


def test_the_stage_without_ray_writes_what_the_stage_writes(
    encoder_folder: Path, pair_rows: Path, text_rows: Path, tmp_path: Path
) -> None:
    """Prevents a loop that is quick because it leaves something out."""
    encoder = Encoder.load(EncoderSpec(path=str(encoder_folder), max_tokens=48), torch.device("cpu"))
    torch.manual_seed(0)
    encoder.head = encoder.new_head(5, 16)
    encoder.head.weight.copy_(torch.randn_like(encoder.head.weight) * 0.02)
    reading = encoder.reading
    traits = np.random.default_rng(0).standard_normal((9, 2 * 32 + reading.groups[-1])).astype(np.float32)
    measure = Familiarity.fit(traits, traits[:4], lengths=reading.groups[-1], neighbours=2)
    rows = read_examples([str(pair_rows), str(text_rows)], None, count=20)
    stage = Stage(tmp_path, encoder, measure, rows, units=3)
    assert stage.seconds_without_ray() > 0
    (folder,) = tmp_path.glob("output-*/embeddings")
    table = pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("*.parquet"))])
    assert table.schema.equals(schemas.embeddings(7))
    found = dict(zip(table["example_id"].to_pylist(), table["embedding"].to_pylist(), strict=True))
    expected, _ = encoder.embed(rows, "pool")
    for number, vector in enumerate(expected):
        np.testing.assert_allclose(found[f"{number}"], vector, atol=2e-3)
