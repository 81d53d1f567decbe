"""What a stage would do: units, rows, tokens, arithmetic, bytes. Counted, never timed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# What speeds are known for. Scanning is counted in rows, everything else in FLOPs.
Kind = Literal["scan", "gradients", "encoder", "training", "search"]


@dataclass(frozen=True)
class Work:
    """The work of one stage.

    Attributes:
        units: as `run_summary.json` counts them.
        rows: that come in.
        rows_counted: whether they were, and not estimated.
        tokens: that go through a model once, however often the stage comes back to them.
        shared: amounts that are divided among workers, a unit at a time.
        shared_units: how many units those are.
        alone: amounts that one worker does, whatever their number.
        bytes_written: of tables and weights, checkpoints left out.
        rests_on: what is assumed, in a sentence each.
    """

    stage: str
    units: int
    rows: int = 0
    rows_counted: bool = True
    tokens: int = 0
    shared: Mapping[Kind, float] = field(default_factory=dict)
    shared_units: int = 1
    alone: Mapping[Kind, float] = field(default_factory=dict)
    bytes_written: int = 0
    rests_on: tuple[str, ...] = ()

    @property
    def flops(self) -> float:
        """Floating-point operations of the models and of the search."""
        return sum(
            amount
            for amounts in (self.shared, self.alone)
            for kind, amount in amounts.items()
            if kind != "scan"
        )
