"""`influcoder-ray doctor --model`: what is sound, what is not, and what to do about it."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SENTENCES, build_causal_lm

from influcoder_ray import cli
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients import selfcheck
from influcoder_ray.gradients.teacher import Teacher

Doctor = Callable[..., tuple[int, str, str]]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs the command; returns its exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = cli.exit_status_of(lambda: cli.app(["doctor", *map(str, arguments)]))
        except SystemExit as end:
            status = int(end.code or 0)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file with the usual columns of an instruction set."""
    table = pa.table(
        {
            "instruction": [f"Say this: {text}" for text in SENTENCES],
            "context": [None, "loudly"] * (len(SENTENCES) // 2),
            "response": list(SENTENCES),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_a_sound_model_is_said_to_be_sound_on_built_in_texts(doctor: Doctor, causal_lm_folder: Path) -> None:
    """Prevents a check that needs data of a user who has none yet, or that hides whose rows it used."""
    status, shown, _ = doctor("--model", causal_lm_folder)
    assert status == 0, shown
    assert "FAIL" not in shown
    assert "built-in texts" in shown
    for name in (
        "rows: 12 of",
        "gradients: ",
        "alone against in a batch, float32",
        "bfloat16 against float32",
        "sketched against exact cosines: 66 pairs",
    ):
        assert f"ok    {name}" in shown
    assert re.search(r"^ +262,144( +0\.\d+){4}$", shown, re.MULTILINE)
    advised = re.search(r"advised sketch.width: ([\d,]+)", shown)
    assert advised
    assert int(advised[1].replace(",", "")) in selfcheck.WIDTHS


def test_a_model_whose_gradients_are_not_finite_is_a_named_fault_with_status_1(
    doctor: Doctor, tmp_path: Path
) -> None:
    """Prevents a broken model from being sketched for hours before every row lands in quarantine."""
    build_causal_lm(tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = math.inf
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    status, shown, errors = doctor("--model", tmp_path / "broken", "--figure", tmp_path / "figure.svg")
    assert status == 1
    assert not errors
    assert "12 of 12 are of no use" in shown
    assert "built-in:0: its gradient is not finite" in shown
    assert "and 7 more: look for weights of the model that are not finite" in shown
    assert shown.count("FAIL") == 1
    assert "nan" not in shown
    assert not (tmp_path / "figure.svg").exists()


def test_each_fault_stands_under_the_figure_that_it_spoils(
    doctor: Doctor, causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents an "ok" beside a figure that is not, and a fault that no line shows."""
    monkeypatch.setitem(selfcheck.BATCH_TOLERANCE, "float32", -1.0)
    status, shown, _ = doctor("--model", causal_lm_folder, "--rows", 3)
    assert status == 1
    assert "FAIL  alone against in a batch, float32" in shown
    assert "built-in:0: its gradient in a batch differs" in shown
    assert "set model.layout to padded" in shown
    assert shown.count("FAIL") == 1


def test_a_precision_in_which_nothing_is_finite_still_has_its_line(
    doctor: Doctor, causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a number type that is of no use at all from being the one that is not mentioned."""
    gradients = Teacher.gradients

    def lost(self: Teacher, tokens: list[Tokens]) -> np.ndarray:
        found = gradients(self, tokens)
        return found * np.nan if next(self.model.parameters()).dtype == torch.bfloat16 else found

    monkeypatch.setattr(Teacher, "gradients", lost)
    status, shown, _ = doctor("--model", causal_lm_folder, "--rows", 3)
    assert status == 0
    assert "cosine with itself is 0.0000 on average, 0.0000 at worst" in shown


def test_a_device_that_is_too_small_is_named_in_one_line(
    doctor: Doctor, causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a traceback where a model fits the device in bfloat16 alone."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Teacher, "load", full)
    status, _, errors = doctor("--model", causal_lm_folder)
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert "a larger device" in errors


def test_rows_of_a_users_files_are_taken_in_equal_shares(
    doctor: Doctor, causal_lm_folder: Path, rows: Path, tmp_path: Path
) -> None:
    """Prevents a second file of rows that is never looked at."""
    lines = [json.dumps({"text": text}) for text in SENTENCES]
    (tmp_path / "plain.jsonl").write_text("\n".join(lines))
    both = ("--data", rows, "--data", tmp_path / "plain.jsonl")
    status, shown, _ = doctor("--model", causal_lm_folder, *both, "--rows", 7)
    assert status == 0, shown
    assert "rows: 7 of" in shown
    assert f"{rows} and {tmp_path / 'plain.jsonl'}" in shown
    assert "21 pairs" in shown


def test_the_figure_and_the_table_are_what_was_printed(
    doctor: Doctor, causal_lm_folder: Path, rows: Path, tmp_path: Path
) -> None:
    """Prevents documentation with other figures than the check found."""
    figure = tmp_path / "width.svg"
    status, shown, _ = doctor("--model", causal_lm_folder, "--data", rows, "--rows", 5, "--figure", figure)
    assert status == 0
    drawing = ElementTree.fromstring(figure.read_text())
    assert "10 pairs of 5 examples" in (drawing.findtext("{http://www.w3.org/2000/svg}desc") or "")
    texts = "".join("".join(it.itertext()) for it in drawing.iter() if it.tag.endswith("text"))
    heading, rule, *table = (tmp_path / "width.md").read_text().splitlines()
    assert heading == "| sketch width | mean error | predicted | worst error | rank agreement |"
    assert re.fullmatch(r"(\| -+: ){5}\|", rule)
    assert [int(line.split()[1].replace(",", "")) for line in table] == list(selfcheck.WIDTHS)
    printed = [line.split() for line in shown.splitlines()]
    for line in table:
        cells = line.replace("|", " ").split()
        assert cells in printed
        assert cells[0] in texts


REFUSALS: dict[str, tuple[list[str], str]] = {
    "two models": (["--model", "MODEL", "--config", "x.yaml"], "give one of the two"),
    "data without model": (["--data", "x.parquet"], "goes with --model"),
    "figure without model": (["--figure", "x.svg"], "give --model or --config"),
    "no model": (["--model", "FOLDER/none"], "model.path"),
    "no data": (["--model", "MODEL", "--data", "FOLDER/none.parquet"], "--data: "),
    "unusual columns": (["--model", "MODEL", "--data", "FOLDER/odd.parquet"], "it has body, title"),
    "empty data": (["--model", "MODEL", "--data", "FOLDER/empty.parquet"], "no row that can be used"),
    "too few rows": (["--model", "MODEL", "--data", "FOLDER/two.parquet"], "give at least 3"),
    "figure that is no drawing": (["--model", "MODEL", "--figure", "FOLDER/width.md"], ".svg"),
    "figure in no folder": (["--model", "MODEL", "--figure", "FOLDER/none/width.svg"], ".svg"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_looked_at_is_refused_in_one_line_with_status_2(
    name: str, doctor: Doctor, causal_lm_folder: Path, tmp_path: Path
) -> None:
    """Prevents tracebacks, and options that are silently not used."""
    pq.write_table(pa.table({"body": ["a"], "title": ["b"]}), tmp_path / "odd.parquet")
    pq.write_table(pa.table({"text": ["", None, " "]}), tmp_path / "empty.parquet")
    pq.write_table(pa.table({"text": ["one row", "and another"]}), tmp_path / "two.parquet")
    arguments, reason = REFUSALS[name]
    fill = {"MODEL": str(causal_lm_folder), "FOLDER": str(tmp_path)}
    status, shown, errors = doctor(*(re.sub("MODEL|FOLDER", lambda m: fill[m[0]], a) for a in arguments))
    assert status == 2
    # How many rows can be used is known when the tokenizer has been loaded.
    assert not shown or name == "too few rows"
    assert len(errors.splitlines()) == 1
    assert reason in errors


def test_a_model_that_does_not_fit_is_refused_with_both_sizes(
    doctor: Doctor, causal_lm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a check that takes the machine down with it."""
    monkeypatch.setattr(selfcheck, "free_memory_bytes", lambda: 10**5)
    status, _, errors = doctor("--model", causal_lm_folder)
    assert status == 2
    assert "12 gradients of" in errors
    assert "0.0 GiB are free" in errors


def test_a_check_leaves_no_setting_of_torch_behind(doctor: Doctor, causal_lm_folder: Path) -> None:
    """Prevents a look at TF32 from deciding what later products are made with."""
    before = torch.get_float32_matmul_precision()
    assert doctor("--model", causal_lm_folder, "--rows", 3)[0] == 0
    assert torch.get_float32_matmul_precision() == before
