"""All attributions in one table, to be searched and sorted."""

from influcoder_ray.report.blocks import AttributionRow, AttributionTable, Block, Prose, Section
from influcoder_ray.report.contents import ReportContents
from influcoder_ray.report.texts import one_line
from influcoder_ray.report.wording import count, plural

_QUERY_CHARACTERS = 90


def section(contents: ReportContents) -> Section:
    title = "All attributions"
    rows = _rows(contents)
    if not rows:
        empty = Prose("No example of the corpus was ranked for a query.", muted=True)
        return Section("attributions", "Attributions", title, (empty,))
    queries = len(contents.queries) + len(contents.listed)
    what = f"The first examples of {plural(queries, 'query', 'queries')}."
    if contents.listed:
        what += (
            f" {count(len(contents.queries))} of them stand below with their texts; their rows lead there."
        )
    if contents.unlisted:
        what += (
            f" {plural(contents.unlisted, 'more query is', 'more queries are')} not in this page: "
            "the folder attributions/ has them all."
        )
    blocks: tuple[Block, ...] = (Prose(what), AttributionTable(tuple(rows), queries))
    return Section("attributions", "Attributions", title, blocks)


def _rows(contents: ReportContents) -> list[AttributionRow]:
    """A row for each attribution of each query; those of queries with a card lead to it."""
    rows = []
    for at, query in enumerate((*contents.queries, *contents.listed), 1):
        asked = one_line(query.prompt or query.response, _QUERY_CHARACTERS) or "(no text)"
        has_card = at <= len(contents.queries)
        for place, it in enumerate(query.attributions, 1):
            anchor = f"query-{at}-{place}" if has_card else ""
            rows.append(AttributionRow(asked, query.query_id, it, anchor))
    return rows
