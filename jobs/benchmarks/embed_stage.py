"""The stage `embed` on Ray beside the same units without it: reading, embedding and committing.

Both go over one corpus of a few units with one encoder. Without Ray, a loop does one unit after the other; on
Ray, one worker with all cores does them as in any run. Its start-up, until it reads its first unit, is left
out.
"""

import os
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console

from influcoder_ray.config import PipelineSettings, WorkersSpec, settings_from
from influcoder_ray.encoder.familiarity import Familiarity, familiarity_bytes
from influcoder_ray.encoder.head import SIDES
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.specs import FAMILIARITY
from influcoder_ray.examples import Example
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.embed import CORPUS
from influcoder_ray.stages.work.embedding import EmbedWork
from influcoder_ray.tables.datafiles import find_data_files
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import StageState
from influcoder_ray.tables.units import Unit, plan_units

_FINGERPRINT = Fingerprint({"stage": "embed"})


class NotedWork(EmbedWork):
    """The stage's work, which notes when it first read a unit.

    Args:
        note: the file whose time says so.
    """

    def __init__(self, note: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._note = Path(note)

    def read(self, unit: Unit) -> Any:
        if not self._note.exists():
            self._note.touch()
        return super().read(unit)


class Stage:
    """A corpus and an encoder in a folder, ready to be embedded both ways.

    Args:
        encoder: with a head.
        units: into how many the rows are cut, at most.
    """

    def __init__(
        self, folder: Path, encoder: Encoder, measure: Familiarity, rows: Sequence[Example], *, units: int
    ) -> None:
        self._folder = folder
        self._encoder = folder / "encoder"
        encoder.save(self._encoder)
        (self._encoder / FAMILIARITY).write_bytes(
            familiarity_bytes({side: deepcopy(measure) for side in SIDES})
        )
        columns = {
            "id": [f"{number}" for number in range(len(rows))],
            "prompt": [None if e.is_raw_text else e.prompt for e in rows],
            "response": [None if e.is_raw_text else e.response for e in rows],
            "text": [e.response if e.is_raw_text else None for e in rows],
        }
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        corpus, rows_per_unit = folder / "corpus.parquet", -(-len(rows) // units)
        pq.write_table(table, corpus, row_group_size=rows_per_unit)
        self._settings = _settings(folder, corpus, encoder)
        self._units = plan_units(
            find_data_files(str(corpus), setting="--rows"),
            rows_per_unit=rows_per_unit,
            fingerprint=_FINGERPRINT.digest,
            table=CORPUS,
        )
        self._passes = 0

    def seconds_without_ray(self) -> float:
        """One pass over all units, each written before the next is read."""
        state, arguments = self._fresh()
        work = EmbedWork(**arguments)
        state.begin(_FINGERPRINT)
        started = time.perf_counter()
        for unit in self._units:
            output = work.process(unit, work.read(unit), lambda rows: None)
            state.commit(unit.unit_id, output, 0.0)
        return time.perf_counter() - started

    def seconds_on_ray(self) -> float:
        """One pass by a worker of Ray, from when it reads its first unit until the last is committed."""
        from influcoder_ray.stages.cluster import Reservation, connect
        from influcoder_ray.stages.units_on_ray import WorkPlan, run_units

        connect(None)
        state, arguments = self._fresh()
        note = self._folder / f"began-{self._passes}"
        threads = torch.get_num_threads()
        reservation = Reservation(
            1, 1, float(min(threads, os.cpu_count() or 1)), 0.0, WorkersSpec().hung_after_seconds
        )
        run_units(
            WorkPlan(state, self._units, NotedWork, {"note": str(note), **arguments}),
            _FINGERPRINT,
            reservation,
            Display(Console(stderr=True)),
        )
        record = Path(state.root.uri) / "_state" / "embed" / "units"
        return max(file.stat().st_mtime for file in record.iterdir()) - note.stat().st_mtime

    def _fresh(self) -> tuple[StageState, dict[str, Any]]:
        """A record of a pass of its own, and what makes its work."""
        self._passes += 1
        root = Place(str(self._folder / f"output-{self._passes}"))
        arguments = {
            "settings": self._settings,
            "encoder": str(self._encoder),
            "corpus": CORPUS,
            "threads": torch.get_num_threads(),
        }
        return StageState(root, "embed", (CORPUS,)), arguments


def _settings(folder: Path, corpus: Path, encoder: Encoder) -> PipelineSettings:
    """Those of a run that has come to its embedding; queries and causal LM are never looked at."""
    columns = {"id": "id", "prompt": "prompt", "response": "response"}
    return settings_from(
        {
            "output": str(folder),
            "corpus": {"path": str(corpus), "columns": {**columns, "text": "text"}},
            "queries": {"path": str(corpus), "columns": columns},
            "model": {"path": str(folder / "encoder")},
            "encoder": encoder.spec.model_dump(mode="json"),
        },
        source="benchmark",
    )
