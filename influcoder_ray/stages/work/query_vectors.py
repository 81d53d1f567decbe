"""The queries' vectors where nothing has to be predicted: made of their own gradients."""

from collections.abc import Mapping, Sequence

import numpy as np

from influcoder_ray.attribution.preconditioning import MixedHessian
from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.examples import Example
from influcoder_ray.stages import sketch
from influcoder_ray.stages.signals import fit_preconditioner
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import sketch_matrix


def takes_gradients(settings: PipelineSettings, encoder: Encoder) -> bool:
    """Whether a query's vector is made of its gradient.

    It is not where the settings want the queries' texts, or the encoder has no head whose directions a sketch
    could be written in.
    """
    return settings.embed.query_vectors == "gradients" and encoder.head is not None


def of_gradients(settings: PipelineSettings, encoder: Encoder) -> Mapping[str, np.ndarray]:
    """Unit vectors (d,) float32 of the queries that have a gradient, by content hash.

    Empty where no vector is to be made of gradients.
    """
    if not takes_gradients(settings, encoder):
        return {}
    schema = schemas.sketches(settings.sketch.width, settings.sketch.dtype)
    rows = sketch.state(settings.root).read(sketch.QUERIES, schema)
    vectors = of_sketches(sketch_matrix(rows), encoder, fit_preconditioner(settings))
    return dict(zip(rows["content_hash"].to_pylist(), vectors, strict=True))


def of_sketches(sketches: np.ndarray, encoder: Encoder, preconditioner: MixedHessian | None) -> np.ndarray:
    """Unit vectors (N, d) float32 of queries by their unit-length sketches (N, D).

    Args:
        encoder: with a head.
        preconditioner: what the settings have sketches pass through before they are compared.
    """
    if encoder.head is None:
        raise ValueError("the encoder has no head, so that a sketch has no directions to be written in")
    features = sketches if preconditioner is None else preconditioner.apply(sketches)
    return np.asarray(encoder.head.of_sketches(features, "queries").cpu().numpy())


def with_gradients(
    vectors: np.ndarray, examples: Sequence[Example], known: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, int]:
    """The vectors (N, d) of queries, those of known gradients in their place, and how many these are."""
    found = [known.get(example.content_hash) for example in examples]
    rows = [row if own is None else own for row, own in zip(vectors, found, strict=True)]
    count = sum(own is not None for own in found)
    return (np.stack(rows) if rows else vectors), count
