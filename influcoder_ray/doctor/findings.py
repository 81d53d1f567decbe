"""What doctor says: one line for each thing that it looked at."""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console

from influcoder_ray.report.texts import printable


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and, where it does not work, what to do."""

    name: str
    found: str
    remedy: str | None = None


def show(findings: Iterable[Finding], console: Console) -> bool:
    """Print the findings as they come; returns whether none of them needs a remedy."""
    sound = True
    for finding in findings:
        mark = "ok  " if finding.remedy is None else "FAIL"
        say(f"{mark}  {finding.name}: {finding.found}", console)
        if finding.remedy is not None:
            sound = False
            say(f"      {finding.remedy}", console)
    return sound


def say(line: str, console: Console) -> None:
    """Print a line whatever its length; what a terminal would obey is left out, for ids are a corpus's."""
    console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
