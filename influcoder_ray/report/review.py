"""The review of what was filtered out as one self-contained HTML page: a table for a person to judge."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from influcoder_ray.report import texts
from influcoder_ray.report.texts import Shown, middle_cut, one_line
from influcoder_ray.report.wording import count, decimal, percentile

TEXT_BUDGET_BYTES = 2_000_000
LEAST_TEXT_BYTES = 1_500

PLACES = (
    ("highest", "Highest scores", "The clearest cases: if these are wrong, so is the rest."),
    ("just taken out", "Just taken out", "The last ones above the threshold. Many wrong ones: raise it."),
    ("just kept", "Just kept", "The first ones below the threshold. Many that should go: lower it."),
)


@dataclass(frozen=True)
class Reviewed:
    """A row to look at: where it stands, what it says, and which query it is nearest to.

    Attributes:
        place: one of the first names in `PLACES`.
        percentile: per cent of the corpus's other rows with a lower score.
    """

    place: str
    example_id: str
    score: float
    percentile: float
    removed: bool
    query_id: str
    source: str
    prompt: str
    response: str


def render_review(
    rows: Sequence[Reviewed], *, title: str, facts: Sequence[tuple[str, str]], how: Sequence[str]
) -> str:
    """The page as HTML text to be written as UTF-8; every text of an example is treated as hostile.

    Args:
        facts: names and values that head the page.
        how: sentences on how the rows were chosen.
    """
    environment = _environment()
    script = environment.get_template("review.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    sizes = [texts.shown_bytes(text) for row in rows for text in (row.prompt, row.response)]
    limit = texts.allowance(sizes, TEXT_BUDGET_BYTES, LEAST_TEXT_BYTES) if sizes else LEAST_TEXT_BYTES

    def shown(text: str) -> Shown:
        return texts.shown(text, limit)

    sections = [
        (anchor, name, meaning, [r for r in rows if r.place == anchor]) for anchor, name, meaning in PLACES
    ]
    return environment.get_template("review.html.j2").render(
        title=one_line(title, 160),
        facts=[(name, one_line(value, 400)) for name, value in facts],
        how=how,
        sections=[section for section in sections if section[3]],
        rows=len(rows),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        shown=shown,
        middle_cut=middle_cut,
        count=count,
        decimal=decimal,
        percentile=percentile,
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("influcoder_ray.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
