"""What a user can get wrong ends in one line, exit status 2, and nothing written."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tiny import build_encoder

from influcoder_ray import cli

Fields = dict[str, Any]


@pytest.fixture
def fields(tmp_path: Path, causal_lm_folder: Path, encoder_folder: Path) -> Fields:
    """Settings that are sound, for a test to break one thing of."""
    rows = {
        "id": [f"r{i}" for i in range(40)],
        "prompt": [f"what is {i}" for i in range(40)],
        "response": [f"the number {i}" for i in range(40)],
    }
    pq.write_table(pa.table(rows), tmp_path / "corpus.parquet")
    rows["response"] = [f"a query for {i}" for i in range(40)]
    pq.write_table(pa.table(rows), tmp_path / "queries.parquet")
    columns = {"id": "id", "prompt": "prompt", "response": "response"}
    return {
        "output": str(tmp_path / "out"),
        "corpus": {"path": str(tmp_path / "corpus.parquet"), "columns": columns},
        "queries": {"path": str(tmp_path / "queries.parquet"), "columns": dict(columns)},
        "model": {"path": str(causal_lm_folder)},
        "encoder": {"path": str(encoder_folder), "max_tokens": 64},
        "sample": {"pool": 20},
    }


def unknown_key(fields: Fields, folder: Path) -> None:
    fields["sketch"] = {"widht": 2048}


def unknown_group(fields: Fields, folder: Path) -> None:
    fields["skech"] = {}


def missing_group(fields: Fields, folder: Path) -> None:
    del fields["model"]


def wrong_value(fields: Fields, folder: Path) -> None:
    fields["sketch"] = {"width": 3000}


def missing_column(fields: Fields, folder: Path) -> None:
    fields["corpus"]["columns"] = fields["corpus"]["columns"] | {"response": "answer"}


def missing_file(fields: Fields, folder: Path) -> None:
    fields["corpus"]["path"] = str(folder / "absent")


def folder_that_is_no_model(fields: Fields, folder: Path) -> None:
    (folder / "empty").mkdir()
    fields["model"]["path"] = str(folder / "empty")


def model_that_is_no_causal_lm(fields: Fields, folder: Path) -> None:
    fields["model"]["path"] = str(build_encoder(folder / "bert"))


def targets_that_match_nothing(fields: Fields, folder: Path) -> None:
    fields["adapter"] = {"targets": ["no_such_module"]}


def empty_corpus(fields: Fields, folder: Path) -> None:
    pq.write_table(pq.read_table(fields["corpus"]["path"])[:0], folder / "none.parquet")
    fields["corpus"]["path"] = str(folder / "none.parquet")


def empty_files_of_both_kinds(fields: Fields, folder: Path) -> None:
    (folder / "nothing").mkdir()
    pq.write_table(pq.read_table(fields["corpus"]["path"])[:0], folder / "nothing/a.parquet")
    (folder / "nothing/b.jsonl").write_bytes(b"")
    fields["corpus"]["path"] = str(folder / "nothing")


def array_in_place_of_lines(fields: Fields, folder: Path) -> None:
    rows = pq.read_table(fields["corpus"]["path"]).to_pylist()
    (folder / "array.jsonl").write_text(json.dumps(rows))
    fields["corpus"]["path"] = str(folder / "array.jsonl")


def repeated_id(fields: Fields, folder: Path) -> None:
    table = pq.read_table(fields["corpus"]["path"])
    pq.write_table(pa.concat_tables([table, table[3:4]]), folder / "twice.parquet")
    fields["corpus"]["path"] = str(folder / "twice.parquet")


def encoder_window_too_wide(fields: Fields, folder: Path) -> None:
    fields["encoder"]["max_tokens"] = 4096


def no_data_file(fields: Fields, folder: Path) -> None:
    (folder / "notes.txt").write_text("no data")
    fields["queries"]["path"] = str(folder / "notes.txt")


def output_among_the_data(fields: Fields, folder: Path) -> None:
    fields["queries"]["path"] = f"{folder}/"


def column_of_numbers(fields: Fields, folder: Path) -> None:
    table = pq.read_table(fields["corpus"]["path"])
    numbers = table.set_column(2, "response", pa.array(range(40)))
    pq.write_table(numbers, folder / "numbers.parquet")
    fields["corpus"]["path"] = str(folder / "numbers.parquet")


FAULTS: dict[Callable[[Fields, Path], None], tuple[str, ...]] = {
    unknown_key: ("sketch.widht", "unknown key", "width"),
    unknown_group: ("skech", "unknown key", "sketch"),
    missing_group: ("model", "missing"),
    wrong_value: ("sketch.width", "power of two"),
    missing_column: ("corpus.columns", "'answer'", "id, prompt, response"),
    missing_file: ("corpus.path", "does not exist"),
    folder_that_is_no_model: ("model.path", "no model"),
    model_that_is_no_causal_lm: ("model.path", "causal LM"),
    targets_that_match_nothing: ("adapter.targets", "no_such_module"),
    empty_corpus: ("corpus.path", "no rows"),
    empty_files_of_both_kinds: ("corpus.path", "no rows"),
    array_in_place_of_lines: ("corpus.path", "array.jsonl", "one object a line"),
    repeated_id: ("corpus.columns.id", "'r3'"),
    encoder_window_too_wide: ("encoder.max_tokens", "128"),
    no_data_file: ("queries.path", "no data file"),
    output_among_the_data: ("output:", "lies in queries.path", "outside"),
    column_of_numbers: ("corpus.columns", "'response'", "int64"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_ends_in_one_line_with_status_2_and_nothing_written(
    fault: Callable[[Fields, Path], None],
    fields: Fields,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A traceback tells a user nothing; work begun on a fault is work lost."""
    fields = copy.deepcopy(fields)
    fault(fields, tmp_path)
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(fields))
    capsys.readouterr()
    status = cli.exit_status_of(
        lambda: cli.app(["run", str(tmp_path / "pipeline.yaml")], standalone_mode=False)
    )
    captured = capsys.readouterr()
    assert status == 2
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert all(part in lines[0] for part in FAULTS[fault])
    assert not (tmp_path / "out").exists()


def test_an_override_is_checked_like_the_file(
    fields: Fields, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An override that bypassed the checks would be the one place where a typo goes unseen."""
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(fields))
    arguments = ["run", str(tmp_path / "pipeline.yaml"), "--set", "distill.epoch=3"]
    assert cli.exit_status_of(lambda: cli.app(arguments, standalone_mode=False)) == 2
    assert "did you mean epochs?" in capsys.readouterr().err


def test_a_stage_without_its_input_names_the_stage_to_run_first(
    fields: Fields, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bare missing-file error would not say that an earlier stage is what is missing."""
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(fields))
    arguments = ["embed", "--config", str(tmp_path / "pipeline.yaml")]
    assert cli.exit_status_of(lambda: cli.app(arguments, standalone_mode=False)) == 2
    assert "run the sample stage first" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["run"], ["evaluate", "--config"]])
def test_seeds_on_the_command_line_are_the_setting(
    command: list[str], fields: Fields, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option that reached the run but not the settings file would be gone in a replay."""
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(fields | {"evaluate": {"seeds": 2}}))
    seen = []
    monkeypatch.setattr("influcoder_ray.pipeline.run", lambda settings, **rest: seen.append(settings))
    for option in ([], ["--seeds", "3"]):
        cli.app([*command, str(tmp_path / "pipeline.yaml"), *option], standalone_mode=False)
    assert [settings.evaluate.seeds for settings in seen] == [2, 3]


def test_no_seeds_at_all_are_refused(
    fields: Fields, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An evaluation without any encoder would have nothing to compare."""
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(fields))
    arguments = ["run", str(tmp_path / "pipeline.yaml"), "--set", "evaluate.seeds=0"]
    assert cli.exit_status_of(lambda: cli.app(arguments, standalone_mode=False)) == 2
    assert "evaluate.seeds" in capsys.readouterr().err
