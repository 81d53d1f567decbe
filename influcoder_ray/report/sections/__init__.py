"""What each section of the report shows: contents in, a `Section` of plain typed blocks out.

A further section is one module beside these and a line in `REPORT`, or a `Section` that is handed to
`render_html` by whoever has its figures.
"""

from collections.abc import Callable

from influcoder_ray.report.blocks import Section
from influcoder_ray.report.contents import ReportContents
from influcoder_ray.report.sections import attributions, figures, quality, queries, run, trust

MakeSection = Callable[[ReportContents], Section]

BEFORE: tuple[MakeSection, ...] = (trust.section, quality.section)
"""What a reader needs before the results; sections on further evidence follow them."""

AFTER: tuple[MakeSection, ...] = (
    figures.section,
    attributions.section,
    queries.section,
    queries.whole_set,
    run.section,
    run.settings,
)
