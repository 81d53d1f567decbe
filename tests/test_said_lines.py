"""Lines that commands print: a user's paths and texts stand in them as they are."""

import io
import tempfile

import pytest
from rich.console import Console
from rich.table import Table

from influcoder_ray.cli import exit_status_of
from influcoder_ray.commands.options import console
from influcoder_ray.doctor import machine
from influcoder_ray.doctor.findings import Finding, show
from influcoder_ray.errors import UserError
from influcoder_ray.stages.display import Display

PATH = "/data/runs [v1]/out [/b]"


def test_a_stage_says_paths_as_they_are() -> None:
    """Read as styles, parts of a path in square brackets vanish, or end the run with a traceback."""
    told = io.StringIO()
    Display(Console(file=told)).say(f"Nothing to do: sample in {PATH} is done")
    assert told.getvalue() == f"Nothing to do: sample in {PATH} is done\n"


def test_commands_print_texts_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """An example's text in a table is a user's as well: str.find(sub[, start]) would lose its brackets."""
    table = Table("text")
    table.add_row(PATH)
    terminal = console()
    terminal.print(table)
    terminal.print(PATH)
    assert capsys.readouterr().out.count(PATH) == 2


HOSTILE = "\x1b]0;title\x07\x1b[2Jq\u202e1"


def test_an_error_hands_no_text_of_a_file_to_the_terminal_as_a_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents an id in a corpus, named in a refusal, from clearing the screen or turning text around."""

    def refuse() -> None:
        raise UserError(f"select.queries.ids: 'x' is none of the 2 queries; there are {HOSTILE}, b")

    assert exit_status_of(refuse) == 2
    told = capsys.readouterr().err
    assert told.endswith("q1, b\n")
    assert told.rstrip("\n").isprintable()


def test_doctor_hands_no_id_to_the_terminal_as_a_command() -> None:
    """Prevents the id of a row without a gradient from being obeyed by the terminal that names it."""
    told = io.StringIO()
    show([Finding("left out", f"{HOSTILE}: no token to predict", "look at it")], Console(file=told))
    assert all(line.isprintable() for line in told.getvalue().splitlines())
    assert "q1: no token to predict" in told.getvalue()


def test_doctor_says_that_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a traceback on a full disk, where not even a folder to try in can be made."""

    def full() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", full)
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *_, **__: full())
    (finding,) = machine._files()
    assert (finding.name, finding.remedy) == ("files", "make room, or set TMPDIR")
