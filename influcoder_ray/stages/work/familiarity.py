"""Familiarity: what a trained encoder was trained on, measured out on what it was not."""

from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.familiarity import Familiarity, familiarity_bytes
from influcoder_ray.encoder.head import SIDES
from influcoder_ray.stages.signals import read_examples
from influcoder_ray.stages.work.embedding import load_encoder
from influcoder_ray.stages.work.scan import seeded_key


def familiarity_file(settings: PipelineSettings, folder: str, threads: int) -> bytes:
    """The content of the file beside an encoder: references and calibration of both sides.

    The references are training examples, of more than `familiarity.most_references` a seeded choice; the
    calibration is on as many validation examples, which chose the epoch and were in no training step.

    Args:
        folder: where the encoder lies.
    """
    encoder = load_encoder(settings.encoder.model_copy(update={"path": folder}), threads=threads)
    most = settings.familiarity.most_references
    sides: dict[str, Familiarity] = {}
    for side in SIDES:
        traits = []
        for split in ("train", "validation"):
            examples = read_examples(settings, side, split)
            examples.sort(key=lambda e: seeded_key(settings.seed, "familiarity", e.content_hash))
            traits.append(encoder.embed_with_traits(examples[:most], side, lambda traits: traits)[1])
        sides[side] = Familiarity.fit(
            *traits, lengths=encoder.reading.groups[-1], neighbours=settings.familiarity.neighbours
        )
    return familiarity_bytes(sides)
