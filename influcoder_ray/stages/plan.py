"""What a stage would do with given settings, known before it does anything."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from influcoder_ray.config import PipelineSettings
from influcoder_ray.errors import RunFailed
from influcoder_ray.stages.display import Display
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.state import Manifest, StageState


@dataclass(frozen=True)
class StagePlan:
    """A stage's record, the fingerprint of what it would make, and the units that make it up.

    `run` does what is missing and returns every unit's manifest; it needs Ray. Of a stage whose first
    unit tells what the others are, `unit_ids` holds them all once that one is done. `renewed_by` names the
    fields of the fingerprint that may differ from what the folder holds: its files are then made anew,
    where any other difference is refused.
    """

    state: StageState
    fingerprint: Fingerprint
    unit_ids: tuple[str, ...]
    run: Callable[[Display], Mapping[str, Manifest]]
    renewed_by: tuple[str, ...] = ()

    def refuse_other(self) -> None:
        """Refuse a folder that holds another run's files.

        Raises:
            UserError: naming the fields that differ.
        """
        self.state.refuse_other(self.fingerprint, self.renewed_by)

    def is_done(self) -> bool:
        return self.state.is_done(self.fingerprint, self.unit_ids)

    def finish(
        self, settings: PipelineSettings, manifests: Mapping[str, Manifest], seconds: float
    ) -> dict[str, float]:
        """Close the stage: sums over its units, the share of unusable rows, the record that it is done.

        Raises:
            RunFailed: more rows than `max_quarantined` allows could not be used.
        """
        totals = sum_up(manifests) | {"wall_seconds": seconds}
        share = totals["rows_quarantined"] / max(1.0, totals["rows_in"])
        if share > settings.max_quarantined:
            raise RunFailed(
                f"{self.state.stage}: {share:.1%} of the rows could not be used, more than max_quarantined "
                f"{settings.max_quarantined:.1%}; see {self.state.root / 'quarantine'} for the reasons"
            )
        self.state.finish(manifests, totals)
        return totals


def sum_up(manifests: Mapping[str, Manifest]) -> dict[str, float]:
    """The sums of rows, seconds of computing and counters over manifests."""
    totals: dict[str, float] = {"units": len(manifests)}
    for manifest in manifests.values():
        numbers = {
            "rows_in": manifest.rows_in,
            "rows_out": manifest.rows_out,
            "rows_quarantined": manifest.rows_quarantined,
            "compute_seconds": manifest.seconds,
            **manifest.counters,
        }
        for name, value in numbers.items():
            totals[name] = totals.get(name, 0) + value
    return totals
