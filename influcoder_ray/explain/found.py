"""What a search of a corpus finds for a query."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """An example of the corpus and where it stands in it for a query.

    Attributes:
        rank: 1 for the most influential of the corpus.
        score: the cosine of the two vectors.
        percentile: the share of the corpus's other examples that rank below, in per cent.
        familiarity: of the encoder with the example, in per cent.
    """

    rank: int
    example_id: str
    score: float
    percentile: float
    source: str
    familiarity: float


@dataclass(frozen=True)
class Extremes:
    """The two ends of a corpus of `rows` examples, each in order of rank."""

    most: list[Found]
    least: list[Found]
    rows: int
