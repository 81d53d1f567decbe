"""A query's vector, by which the corpus is searched: made of its gradient, or predicted from its text."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from influcoder_ray.examples import Example
from influcoder_ray.explain.exact import query_sketch
from influcoder_ray.explain.run import Run
from influcoder_ray.stages.work.embedding import embed_with_texts
from influcoder_ray.stages.work.query_vectors import of_sketches, takes_gradients

# What a vector is wanted to be made of; auto: the gradient where it is known or the model is loaded anyway.
Wanted = Literal["auto", "gradient", "text"]


@dataclass(frozen=True, eq=False)
class QueryVector:
    """A query's unit vector (d,) float32, and what it is made of.

    Attributes:
        familiarity: of the encoder with the query's text, in per cent.
        text: (h,) float32, of what its text is about, by which texts like it are found.
    """

    vector: npt.NDArray[np.float32]
    made_of: Literal["gradient", "text"]
    familiarity: float
    text: npt.NDArray[np.float32]


def query_vector(run: Run, question: Example, wanted: Wanted) -> QueryVector:
    """The vector by which a query searches.

    As the `embed` stage has it: of the query's gradient, written in the head's directions, or of the encoder
    where the settings want texts or there is no head, whatever is wanted here.

    Raises:
        UserError: a gradient is wanted and the query has none.
    """
    by_text, familiarity, texts, _, _ = embed_with_texts(
        run.encoder, [question], "queries", run.familiarity["queries"]
    )
    if wanted != "text" and takes_gradients(run.settings, run.encoder):
        computed = wanted == "gradient" or run.has_teacher
        sketch = query_sketch(run, question) if computed else run.known_sketch(question)
        if sketch is not None:
            vector = of_sketches(sketch, run.encoder, run.preconditioner)[0]
            return QueryVector(vector, "gradient", float(familiarity[0]), texts[0])
    return QueryVector(by_text[0], "text", float(familiarity[0]), texts[0])
