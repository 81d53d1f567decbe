"""The recipes by their names."""

from influcoder_ray.encoder.model import Encoder
from influcoder_ray.encoder.pairs import PairTraining
from influcoder_ray.encoder.specs import DistillSpec
from influcoder_ray.encoder.spectral import SpectralTraining
from influcoder_ray.encoder.training import Examples, Training
from influcoder_ray.encoder.workers import Workers


def training(
    encoder: Encoder, queries: Examples, pool: Examples, spec: DistillSpec, *, seed: int, workers: Workers
) -> Training:
    """The training that the settings ask for, at its beginning."""
    if spec.recipe == "influcoder":
        return PairTraining(encoder, queries, pool, spec, seed=seed, workers=workers, epochs=spec.epochs)
    # The first epoch takes no steps.
    return SpectralTraining(encoder, queries, pool, spec, seed=seed, workers=workers, epochs=spec.epochs - 1)
