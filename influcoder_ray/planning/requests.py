"""What a unit asks of S3, and what that costs. The numbers are counted on the wire, by a test."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Requests:
    """Requests by the two kinds that have prices of their own.

    Attributes:
        writes: PUT, POST and LIST.
        reads: GET and HEAD.
    """

    writes: int
    reads: int

    def __add__(self, other: "Requests") -> "Requests":
        return Requests(self.writes + other.writes, self.reads + other.reads)

    def times(self, count: int) -> "Requests":
        return Requests(self.writes * count, self.reads * count)

    def with_tables(self, tables: int) -> "Requests":
        """With as many tables written, each by one request; of over 50 MiB by one for each 50, and two."""
        return Requests(self.writes + tables, self.reads)

    def cost(self, price_of_1000_writes: float, price_of_1000_reads: float) -> float:
        """In the prices' currency."""
        return (self.writes * price_of_1000_writes + self.reads * price_of_1000_reads) / 1000


# A piece of Parquet of one row group of some megabytes: its size, its footer, its rows.
PIECE = Requests(writes=0, reads=3)
# The same by the search, which opens a shard for the vectors and for what stands beside them.
SHARD_READ = Requests(writes=0, reads=6)
# The manifest that vouches for a unit; the fingerprint is asked for and read, for the table's metadata.
COMMIT = Requests(writes=1, reads=2)
# What a unit reads, and how many tables it leaves, of the stages that have a unit for each part of a corpus.
_UNITS = {"embed": (PIECE, 1), "attribute": (SHARD_READ, 3)}


@dataclass(frozen=True)
class StoreUse:
    """What a stage leaves on S3 and asks of it, at the least: large files take more requests than one."""

    objects: int
    requests: Requests


def store_use(stage: str, units: int) -> StoreUse | None:
    """That of so many units, each of one file or a part of it; None of a stage that was not counted."""
    if stage not in _UNITS:
        return None
    read, tables = _UNITS[stage]
    return StoreUse(units * (tables + 1), (read + COMMIT.with_tables(tables)).times(units))
