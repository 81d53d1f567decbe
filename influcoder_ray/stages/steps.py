"""The steps of a stage that goes over the parts of a corpus several times, and what each came to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages.display import Display
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.state import Manifest, StageState
from influcoder_ray.tables.units import Unit


class Steps:
    """Does steps that are not done yet, on the workers that search; `manifests` has those of all, by unit.

    What an older choice left in the folder is removed before the first of them.
    """

    def __init__(
        self, settings: PipelineSettings, record: StageState, fingerprint: Fingerprint, display: Display
    ) -> None:
        from influcoder_ray.stages.cluster import reserve

        record.renew(fingerprint)
        self.record = record
        self.manifests: dict[str, Manifest] = {}
        self._settings = settings
        self._fingerprint = fingerprint
        self._display = display
        self._reservation = reserve(settings.workers.attribute)

    def over_parts(self, units: Sequence[Unit], work: Callable[..., Any], **arguments: Any) -> list[Manifest]:
        """Do a step over parts of the corpus; its manifests in order of the units."""
        from influcoder_ray.stages.units_on_ray import WorkPlan, run_units

        plan = WorkPlan(self.record, units, work, arguments)
        found: Mapping[str, Manifest] = run_units(plan, self._fingerprint, self._reservation, self._display)
        self.manifests.update(found)
        return [found[unit.unit_id] for unit in units]

    def alone(self, unit_id: str, work: Callable[..., Manifest], **arguments: Any) -> Manifest:
        """Do a step that is one unit.

        Raises:
            UserError: the step found that something cannot be had.
        """
        from influcoder_ray.stages.units_on_ray import one_unit

        found = one_unit(self.record, unit_id, work, self._settings, self._reservation, **arguments)
        self.manifests[unit_id] = found
        return found
