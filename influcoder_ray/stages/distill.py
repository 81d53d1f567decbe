"""Distill: the encoder learns to rank as the teacher's sketches do, and what it knows is written down."""

import time
from collections.abc import Mapping
from types import ModuleType

from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.specs import FAMILIARITY
from influcoder_ray.errors import UserError
from influcoder_ray.stages import explore, sample, sketch
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


def seeds(settings: PipelineSettings) -> range:
    """The seeds of the encoders that evaluation compares; the first is that of the run's own."""
    return range(settings.seed, settings.seed + settings.evaluate.seeds)


def seed_state(settings: PipelineSettings, seed: int) -> StageState:
    """The record of the encoder that is distilled with a seed.

    Those of other seeds than the run's own are for evaluation alone, and lie below `_state/`: beside the
    evaluation's record, which is emptied whenever another evaluation begins.
    """
    if seed == settings.seed:
        return state(settings.root)
    return StageState(settings.root, f"seeds/{seed}", (f"_state/seeds/{seed}/{ENCODER}",))


def encoder_folder(settings: PipelineSettings, seed: int) -> Place:
    """Where the encoder lies that is distilled with a seed."""
    return settings.root / seed_state(settings, seed).tables[0]


def refuse_dimensions(settings: PipelineSettings, seed: int | None = None) -> None:
    """Refuse `embed.dimensions` that a finished encoder does not have; where it is unset, look at nothing.

    The settings alone do not tell: the untrained encoder may have been kept.

    Args:
        seed: whose encoder, the run's own if None.

    Raises:
        UserError: saying how many it has, and what to do.
    """
    wanted = settings.embed.dimensions
    if wanted is None:
        return
    from influcoder_ray.encoder.head import count_directions

    seed = settings.seed if seed is None else seed
    folder = encoder_folder(settings, seed)
    whose = f"the encoder of seed {seed} in {folder}"
    trained = count_directions(folder)
    if not trained:
        raise UserError(
            f"embed.dimensions: {whose} is the untrained one, kept because no epoch agreed better, and its "
            "numbers are in no order; leave embed.dimensions out, or set distill.fall_back to false in "
            "another output folder"
        )
    if wanted > trained:
        raise UserError(
            f"embed.dimensions: {wanted} are more than the {trained} of {whose}; give {trained} at most"
        )


def plan(settings: PipelineSettings, seed: int | None = None) -> StagePlan:
    """What distilling an encoder takes.

    Args:
        seed: of what is random in the distillation, the run's own if None. Sample, splits and sketches
            are the run's whichever it is.
    """
    seed = settings.seed if seed is None else seed
    encoder = at_hand(settings.encoder)
    fingerprint = Fingerprint(
        {
            "stage": "distill",
            "scheme": "spectral-2",
            "seed": seed,
            "inputs": {
                stage: module.state(settings.root).finished().digest
                for stage, module in _inputs(settings).items()
            },
            "encoder": encoder.model_dump(mode="json", exclude={"path"})
            | {"files": model_identity(Place(encoder.path), "encoder.path")},
            "influence": settings.influence.model_dump(mode="json"),
            "distill": settings.distill.model_dump(mode="json"),
            "familiarity": settings.familiarity.model_dump(mode="json"),
        }
    )
    record = seed_state(settings, seed)
    ids = (f"encoder-{fingerprint.digest[:16]}", f"familiarity-{fingerprint.digest[:16]}")

    def run(display: Display) -> Mapping[str, Manifest]:
        from influcoder_ray.stages.train_on_ray import measure_familiarity, train

        record.begin(fingerprint)
        started = time.monotonic()
        trained = train(settings, fingerprint.digest, display, seed=seed, stage=record.stage)
        seconds = time.monotonic() - started
        folder = settings.root / record.tables[0]
        files = {f"{record.tables[0]}/{name}": data for name, data in trained.items()}
        manifests = {ids[0]: record.commit_files(ids[0], files, seconds=seconds, counters={})}
        started = time.monotonic()
        measured = measure_familiarity(settings, folder)
        seconds = time.monotonic() - started
        files = {f"{record.tables[0]}/{FAMILIARITY}": measured}
        return manifests | {ids[1]: record.commit_files(ids[1], files, seconds=seconds, counters={})}

    return StagePlan(record, fingerprint, ids, run)


def _inputs(settings: PipelineSettings) -> dict[str, ModuleType]:
    explored = {"explore": explore} if settings.explore.examples else {}
    return {"sample": sample, "sketch": sketch, **explored}
