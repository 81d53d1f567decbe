"""The estimate: work divided by speed. Plain arithmetic, and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from influcoder_ray.planning.speed import Speeds, seconds_alone
from influcoder_ray.planning.work import Work

_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class StageEstimate:
    """What a stage takes.

    Attributes:
        device_seconds: of work, however many workers share it, and one start.
        wall_seconds: by the number of workers.
        held_seconds: of all workers together, idle ones among them, by the number of workers.
        cost: of the device time, in the price's currency; None where no price is given.
    """

    work: Work
    device_seconds: float
    wall_seconds: Mapping[int, float]
    held_seconds: Mapping[int, float]
    cost: float | None


@dataclass(frozen=True)
class Estimate:
    """What a run takes, stage by stage."""

    stages: tuple[StageEstimate, ...]
    price_per_hour: float | None

    @property
    def device_seconds(self) -> float:
        return sum(stage.device_seconds for stage in self.stages)

    @property
    def bytes_written(self) -> int:
        return sum(stage.work.bytes_written for stage in self.stages)

    @property
    def flops(self) -> float:
        return sum(stage.work.flops for stage in self.stages)

    @property
    def cost(self) -> float | None:
        """Of the device time alone, as if no worker ever waited for another."""
        return _cost(self.device_seconds, self.price_per_hour)

    def wall_seconds(self, workers: int) -> float:
        return sum(stage.wall_seconds[workers] for stage in self.stages)

    def cost_with(self, workers: int) -> float | None:
        """Of so many workers, each paid for while the stage that it is in lasts."""
        return _cost(sum(stage.held_seconds[workers] for stage in self.stages), self.price_per_hour)


def estimate(
    works: Sequence[Work], speeds: Speeds, *, workers: Sequence[int], price_per_hour: float | None = None
) -> Estimate:
    """What stages take with each number of workers.

    Units of a stage are taken to be equally large, so U of them on W workers take ceil(U / W) turns.

    Args:
        price_per_hour: of one worker.
    """
    return Estimate(tuple(_stage(work, speeds, workers, price_per_hour) for work in works), price_per_hour)


def _stage(work: Work, speeds: Speeds, workers: Sequence[int], price: float | None) -> StageEstimate:
    start = speeds.start_seconds.get(work.stage, 0.0)
    shared, alone = (speeds.seconds(work.stage, amounts) for amounts in (work.shared, work.alone))
    units = max(1, work.shared_units)
    wall, held = {}, {}
    for count in workers:
        at_work = min(count, units)
        sharing = shared * -(-units // at_work) / units
        wall[count] = start + alone + sharing
        held[count] = at_work * (start + sharing) + alone
    device_seconds = start + seconds_alone(work, speeds)
    return StageEstimate(work, device_seconds, wall, held, _cost(device_seconds, price))


def _cost(seconds: float, price_per_hour: float | None) -> float | None:
    return None if price_per_hour is None else seconds / _SECONDS_PER_HOUR * price_per_hour
