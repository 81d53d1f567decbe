"""How far a run has come, told by what its stages have recorded in the output folder."""

import json
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from influcoder_ray.tables.fingerprint import digest_of
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest

_THREADS = 16
_ATTEMPTS = 3


@dataclass(frozen=True)
class StageProgress:
    """What is vouched for of one stage. `seconds` is the time that it took; None while it is not finished."""

    stage: str
    begun: bool
    finished: bool
    units: int
    rows: int
    rows_quarantined: int
    seconds: float | None


@dataclass(frozen=True)
class Progress:
    """All stages at one moment; two moments with the same `key` are the same."""

    key: str
    stages: tuple[StageProgress, ...]

    @property
    def finished(self) -> bool:
        return all(stage.finished for stage in self.stages)


class ProgressReader:
    """Looks at an output folder again and again: one listing, and no file that was read before.

    Args:
        root: the output folder; it need not be there yet.
        stages: the names of the stages to look for, in order.
    """

    def __init__(self, root: Place, stages: Sequence[str]) -> None:
        self._state = root / "_state"
        self._stages = tuple(stages)
        self._manifests: dict[str, Manifest] = {}

    def look(self) -> Progress:
        """The stages as they are now."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._look()
            except FileNotFoundError:
                # A stage that begins anew takes its record away, between the listing and the reading.
                self._manifests.clear()
        return self._look()

    def _look(self) -> Progress:
        entries = {entry.relative: entry.size_bytes for entry in self._state.files()}
        names = {name: size for name, size in entries.items() if self._is_record(name)}
        units = {stage: [n for n in names if n.startswith(f"{stage}/units/")] for stage in self._stages}
        wanted = {name for found in units.values() for name in found}
        self._manifests = {name: it for name, it in self._manifests.items() if name in wanted}
        new = sorted(wanted - self._manifests.keys())
        with ThreadPoolExecutor(_THREADS) as threads:
            self._manifests.update(zip(new, threads.map(self._manifest, new), strict=True))
        return Progress(
            digest_of(sorted(names.items())),
            tuple(self._progress(stage, names.keys(), units[stage]) for stage in self._stages),
        )

    def _is_record(self, name: str) -> bool:
        """Whether a file tells of a stage that is looked for; checkpoints and intermediate tables do not."""
        stage, _, rest = name.partition("/")
        records = ("fingerprint.json", "totals.json")
        return stage in self._stages and (rest in records or rest.startswith("units/"))

    def _manifest(self, name: str) -> Manifest:
        return Manifest.from_json((self._state / name).read_bytes())

    def _progress(self, stage: str, names: Collection[str], units: Sequence[str]) -> StageProgress:
        manifests = [self._manifests[name] for name in units]
        seconds = None
        finished = f"{stage}/totals.json" in names
        if finished:
            record = json.loads((self._state / stage / "totals.json").read_bytes())
            seconds = float(record["totals"]["wall_seconds"])
        return StageProgress(
            stage=stage,
            begun=f"{stage}/fingerprint.json" in names,
            finished=finished,
            units=len(units),
            rows=sum(it.rows_out for it in manifests),
            rows_quarantined=sum(it.rows_quarantined for it in manifests),
            seconds=seconds,
        )
