"""What a page is made of: small typed contents, each of which the template knows how to show.

A further section of the report is one module that returns a `Section` out of these; it writes no HTML. All
texts are plain: the template escapes them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from markupsafe import Markup

from influcoder_ray.report.contents import Attribution, QueryPage


@dataclass(frozen=True)
class Prose:
    """A paragraph; `muted` for what only says that something is not there."""

    kind: ClassVar[str] = "prose"
    text: str
    muted: bool = False


@dataclass(frozen=True)
class Note:
    """A paragraph in small type."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Heading:
    """A heading inside a section, above the blocks that follow."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Bullets:
    """Sentences, one below the other."""

    kind: ClassVar[str] = "bullets"
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Terms:
    """Words with their meanings."""

    kind: ClassVar[str] = "terms"
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Findings:
    """Names with what was found; `label` says what the list is to those who cannot see it."""

    kind: ClassVar[str] = "findings"
    label: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cell:
    """One figure of a table, formatted; `best` where no other row has a higher one. `aside` stands behind."""

    mean: str
    std: str = ""
    best: bool = False
    aside: str = ""


@dataclass(frozen=True)
class Row:
    """One row of a table: its name, a cell for each column, and a word beside the name."""

    name: str
    cells: tuple[Cell, ...]
    tag: str = ""


@dataclass(frozen=True)
class Table:
    """A table of figures. `corner` heads the names of the rows; a `stacked` one is cards on a telephone."""

    kind: ClassVar[str] = "table"
    label: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    caption: str = ""
    note: str = ""
    stacked: bool = False


@dataclass(frozen=True)
class Drawing:
    """One figure with its caption; `absent` says why there is none where `svg` is None.

    `table` holds the figure's numbers, for those who would rather read them.
    """

    kind: ClassVar[str] = "drawing"
    name: str
    meaning: str
    svg: Markup | None
    absent: str
    table: Table | None = None


@dataclass(frozen=True)
class AttributionRow:
    """One row of the table of attributions; `anchor` is the place in the page where its text stands."""

    query: str
    query_id: str
    attribution: Attribution
    anchor: str = ""


@dataclass(frozen=True)
class AttributionTable:
    """Attributions of many queries in one table, to be searched and sorted."""

    kind: ClassVar[str] = "attribution_table"
    rows: tuple[AttributionRow, ...]
    queries: int


@dataclass(frozen=True)
class QueryCards:
    """Each query beside its examples, best first. `standing` has a sentence for each query, or none."""

    kind: ClassVar[str] = "query_cards"
    queries: tuple[QueryPage, ...]
    standing: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """Examples in order, under a name."""

    kind: ClassVar[str] = "ranking_card"
    name: str
    meaning: str
    attributions: tuple[Attribution, ...]
    anchor: str


@dataclass(frozen=True)
class Fold:
    """A text as it is, which a reader opens."""

    kind: ClassVar[str] = "fold"
    summary: str
    text: str


@dataclass(frozen=True)
class Columns:
    """Blocks beside each other where there is room."""

    kind: ClassVar[str] = "columns"
    columns: tuple[tuple["Block", ...], ...]


Block: TypeAlias = (
    Prose
    | Note
    | Heading
    | Bullets
    | Terms
    | Findings
    | Table
    | Drawing
    | AttributionTable
    | QueryCards
    | Ranking
    | Fold
    | Columns
)


@dataclass(frozen=True)
class Section:
    """A part of the page: `anchor` is its id, `name` stands in the list of sections, `title` above it."""

    anchor: str
    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Headline:
    """One large number, what it counts and what it means."""

    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Page:
    """A whole page. One with `refresh_seconds` loads itself again: it needs a server behind it."""

    title: str
    byline: str
    sections: tuple[Section, ...]
    warnings: tuple[str, ...] = ()
    headline: tuple[Headline, ...] = ()
    footer: str = ""
    refresh_seconds: int | None = None


def texts_of(block: Block) -> Iterator[str]:
    """The texts of examples that a block shows in full, for all of which together a page has room."""
    if isinstance(block, QueryCards):
        for query in block.queries:
            yield from (query.prompt, query.response)
            for it in query.attributions:
                yield from (it.prompt, it.response)
    elif isinstance(block, Ranking):
        for it in block.attributions:
            yield from (it.prompt, it.response)
    elif isinstance(block, Columns):
        for column in block.columns:
            for inner in column:
                yield from texts_of(inner)
