"""The command and the package's face: what they refuse, what they load, what they say about themselves."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import influcoder_ray
from influcoder_ray import cli

REFUSED = {
    "nothing asked": ([], "--query"),
    "both asked": (["--query", "a", "--text", "b"], "--query"),
    "empty query": (["--query", "  "], "--query: is empty"),
    "empty response": (["--query", "a", "--response", ""], "--response: is empty"),
    "empty text": (["--text", "\n"], "--text: is empty"),
    "text with response": (["--text", "a", "--response", "b"], "--response"),
    "no folder for the file": (["--query", "a", "--json", "/nowhere/at/all.json"], "--json"),
    "no run": (["--query", "a", "--response", "b"], "holds no settings.yaml"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_explained_is_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a traceback, or models being loaded before a typing mistake is told."""
    options, expected = REFUSED[name]
    arguments = ["explain", str(tmp_path), *options]
    assert cli.exit_status_of(lambda: cli.app(arguments, standalone_mode=False)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line
    assert not list(tmp_path.iterdir())


def test_the_help_fits_a_screen_and_has_an_example() -> None:
    """Prevents options that scroll away, and an example that is folded in the middle of a word."""
    shown = CliRunner().invoke(cli.app, ["explain", "--help"], terminal_width=100).output
    assert len(shown.splitlines()) <= 40
    assert "Example: influcoder-ray explain" in shown


def test_the_package_is_imported_without_what_explains() -> None:
    """Prevents `import influcoder_ray`, or a command's --help, from taking the seconds that torch takes."""
    command = (
        "import sys, influcoder_ray, influcoder_ray.cli\n"
        "assert not {'torch', 'ray', 'transformers', 'pyarrow'} & sys.modules.keys()\n"
    )
    root = Path(influcoder_ray.__file__).parents[1]
    subprocess.run([sys.executable, "-c", command], cwd=root, check=True, timeout=60)


def test_the_face_of_the_package_is_the_attributor_and_nothing_made_up() -> None:
    """Prevents a misspelt name from importing as something."""
    from influcoder_ray.explain.attributor import Attributor

    assert influcoder_ray.Attributor is Attributor
    with pytest.raises(AttributeError, match="Atributor"):
        _ = influcoder_ray.Atributor
