"""Distill: the encoder learns to rank as the teacher's sketches do."""

import time
from collections.abc import Mapping

from influcoder_ray.config import PipelineSettings
from influcoder_ray.stages import sample, sketch
from influcoder_ray.stages.display import Display
from influcoder_ray.stages.folders import at_hand
from influcoder_ray.stages.plan import StagePlan
from influcoder_ray.tables.fingerprint import Fingerprint, model_identity
from influcoder_ray.tables.place import Place
from influcoder_ray.tables.state import Manifest, StageState

ENCODER = "encoder"


def state(root: Place) -> StageState:
    return StageState(root, "distill", (ENCODER,))


def check(settings: PipelineSettings) -> None:
    """Refuse an encoder that cannot be used; reads no weights.

    Raises:
        UserError: naming what is wrong with it.
    """
    from influcoder_ray.encoder.model import check_encoder

    check_encoder(at_hand(settings.encoder))


def plan(settings: PipelineSettings) -> StagePlan:
    encoder = at_hand(settings.encoder)
    fingerprint = Fingerprint(
        {
            "stage": "distill",
            "scheme": "spectral-1",
            "seed": settings.seed,
            "inputs": {
                "sample": sample.state(settings.root).finished().digest,
                "sketch": sketch.state(settings.root).finished().digest,
            },
            "encoder": encoder.model_dump(mode="json", exclude={"path"})
            | {"files": model_identity(Place(encoder.path))},
            "influence": settings.influence.model_dump(mode="json"),
            "distill": settings.distill.model_dump(mode="json"),
        }
    )
    record = state(settings.root)
    unit_id = f"encoder-{fingerprint.digest[:16]}"

    def run(display: Display) -> Mapping[str, Manifest]:
        from influcoder_ray.stages.train_on_ray import train

        record.begin(fingerprint)
        started = time.monotonic()
        trained = train(settings, fingerprint.digest, display)
        seconds = time.monotonic() - started
        files = {f"{ENCODER}/{name}": data for name, data in trained.items()}
        return {unit_id: record.commit_files(unit_id, files, seconds=seconds, counters={})}

    return StagePlan(record, fingerprint, (unit_id,), run)
