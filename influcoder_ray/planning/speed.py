"""How fast work goes, and what is known of that."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from influcoder_ray.planning.work import Kind, Work


@dataclass(frozen=True)
class Speeds:
    """What one worker does in a second.

    Attributes:
        per_second: rows scanned, or FLOPs of each kind.
        start_seconds: what a stage takes beside its work, by stage: workers that start, models that load.
        seconds_share: by stage, what its work takes as a share of what `per_second` says; 1 if not named.
        rests_on: where the figures come from, in a sentence each.
    """

    per_second: Mapping[Kind, float]
    start_seconds: Mapping[str, float] = field(default_factory=dict)
    seconds_share: Mapping[str, float] = field(default_factory=dict)
    rests_on: tuple[str, ...] = ()

    def seconds(self, stage: str, amounts: Mapping[Kind, float]) -> float:
        """What one worker takes for amounts of a stage's work."""
        by_rate = sum(amount / self.per_second[kind] for kind, amount in amounts.items() if amount)
        return by_rate * self.seconds_share.get(stage, 1.0)


def seconds_alone(work: Work, speeds: Speeds) -> float:
    """What one worker takes for all of a stage's work, without its start."""
    return speeds.seconds(work.stage, work.shared) + speeds.seconds(work.stage, work.alone)
