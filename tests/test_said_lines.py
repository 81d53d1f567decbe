"""Lines that commands print: a user's paths and texts stand in them as they are."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from influcoder_ray.commands.options import console
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
