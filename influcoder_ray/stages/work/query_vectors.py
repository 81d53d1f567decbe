"""The queries' vectors where nothing has to be predicted: made of their own gradients."""

from collections.abc import Mapping, Sequence

import numpy as np

from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.examples import Example
from influcoder_ray.stages import sketch
from influcoder_ray.stages.signals import fit_preconditioner
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import sketch_matrix


def of_gradients(settings: PipelineSettings, encoder: Encoder) -> Mapping[str, np.ndarray]:
    """Unit vectors (d,) float32 of the queries that have a gradient, by content hash.

    Empty where the settings want the queries' texts, or the encoder has no head whose directions a sketch
    could be written in.
    """
    if settings.embed.query_vectors == "texts" or encoder.head is None:
        return {}
    schema = schemas.sketches(settings.sketch.width, settings.sketch.dtype)
    rows = sketch.state(settings.root).read(sketch.QUERIES, schema)
    sketches, preconditioner = sketch_matrix(rows), fit_preconditioner(settings)
    if preconditioner is not None:
        sketches = preconditioner.apply(sketches)
    vectors = encoder.head.of_sketches(sketches, "queries").cpu().numpy()
    return dict(zip(rows["content_hash"].to_pylist(), vectors, strict=True))


def with_gradients(
    vectors: np.ndarray, examples: Sequence[Example], known: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, int]:
    """The vectors (N, d) of queries, those of known gradients in their place, and how many these are."""
    found = [known.get(example.content_hash) for example in examples]
    rows = [row if own is None else own for row, own in zip(vectors, found, strict=True)]
    count = sum(own is not None for own in found)
    return (np.stack(rows) if rows else vectors), count
