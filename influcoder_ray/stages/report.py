"""Report: one HTML file out of the tables that the other stages left."""

import time
from collections.abc import Mapping

from influcoder_ray import __version__
from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages import attribute, evaluate, mark, rerank, validate
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.tables.fingerprint import Fingerprint
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, StageState

REPORT = "report.html"


def state(root: Place) -> StageState:
    return StageState(root, "report", (REPORT,))


def plan(settings: PipelineSettings) -> StagePlan:
    inputs = {
        stage.__name__.rsplit(".", 1)[-1]: stage.state(settings.root).finished().digest
        for stage in (attribute, evaluate)
    }
    reranked = rerank.found(settings)
    if reranked is not None:
        inputs["rerank"] = reranked.digest
    validated = validate.found(settings)
    if validated is not None:
        inputs["validate"] = validated
    marked = mark.found(settings)
    if marked is not None:
        inputs["mark"] = marked.digest
    fingerprint = Fingerprint(
        {
            "stage": "report",
            "version": __version__,
            "inputs": inputs,
            # The marks, like all else that is shown, are among the inputs.
            "report": settings.report.model_dump(mode="json", exclude={"marked"}),
        }
    )
    record = state(settings.root)
    unit_id = f"report-{fingerprint.digest[:16]}"

    def run(_: Display) -> Mapping[str, Manifest]:
        from influcoder_ray.stages.work import page

        record.begin(fingerprint)
        started = time.monotonic()
        html = page.html(settings).encode()
        seconds = time.monotonic() - started
        return {unit_id: record.commit_files(unit_id, {REPORT: html}, seconds=seconds, counters={})}

    # One file, made in seconds out of what is there: when what it shows is renewed, so is the page.
    renewed_by = ("inputs.evaluate", "inputs.rerank", "inputs.validate", "inputs.mark")
    return StagePlan(record, fingerprint, (unit_id,), run, renewed_by=renewed_by)
