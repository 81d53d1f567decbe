"""A finished run as what explains a query: its encoder, its model, its influence, each loaded when needed."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch

from influcoder_ray.attribution.preconditioning import MixedHessian
from influcoder_ray.config import PipelineSettings
from influcoder_ray.encoder.familiarity import Familiarity
from influcoder_ray.encoder.model import Encoder
from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.gradients.sketch import CountSketch
from influcoder_ray.gradients.teacher import Teacher
from influcoder_ray.pipeline import settings_of_run
from influcoder_ray.stages import distill, embed, sketch
from influcoder_ray.stages.folders import at_hand
from influcoder_ray.stages.signals import fit_preconditioner
from influcoder_ray.stages.work.embedding import load_familiarity, load_student
from influcoder_ray.stages.work.text_search import TEXTS
from influcoder_ray.tables import schemas
from influcoder_ray.tables.arrays import sketch_matrix


class Run:
    """What a run's output folder knows, on this machine's device.

    Raises:
        UserError: its embeddings are not finished, or are kept along other directions.
    """

    def __init__(self, settings: PipelineSettings) -> None:
        held = embed.state(settings.root).finished().fields["embed"].get("dimensions")
        if held != settings.embed.dimensions:
            there = "all" if held is None else held
            raise UserError(
                f"embed.dimensions: the vectors in {settings.root} are kept along {there} of the encoder's "
                "directions; leave the setting as the run has it"
            )
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @staticmethod
    def open(folder: str, overrides: Sequence[str] = ()) -> "Run":
        """The run in an output folder, local or s3://.

        Raises:
            UserError: there is none, or its embeddings are not finished.
        """
        return Run(settings_of_run(folder, overrides))

    @cached_property
    def encoder(self) -> Encoder:
        """The distilled encoder."""
        return load_student(self.settings, (self.settings.root / distill.ENCODER).uri, self.device)

    @cached_property
    def familiarity(self) -> dict[str, Familiarity]:
        """What familiarity to the encoder is measured against."""
        return load_familiarity(self.encoder)

    @property
    def has_teacher(self) -> bool:
        """Whether the causal LM is in memory already."""
        return "teacher" in self.__dict__

    @cached_property
    def teacher(self) -> Teacher:
        """The causal LM with the run's adapter.

        Raises:
            UserError: it is not there, or is not the one that the run's gradients were taken of.
        """
        settings = self.settings
        sketch.check(settings)
        held = sketch.state(settings.root).finished()
        differing = sketch.plan(settings).fingerprint.differences(held)
        if differing:
            raise UserError(
                f"model.path: {settings.model.path} does not give the gradients of this run "
                f"({differing[0]}); give the model and adapter that it was made with"
            )
        return Teacher.load(
            at_hand(settings.model), at_hand(settings.adapter), seed=settings.seed, device=self.device
        )

    @cached_property
    def keeps_texts(self) -> bool:
        """Whether the corpus's rows have text vectors, by which it can be searched beside the encoder's."""
        files = embed.state(self.settings.root).data_files(embed.QUERIES)
        return bool(files) and TEXTS in files[0].columns

    @cached_property
    def sketch(self) -> CountSketch:
        """The sketch that the run's gradients went through."""
        return CountSketch(self.settings.sketch.width, self.settings.seed)

    @cached_property
    def preconditioner(self) -> MixedHessian | None:
        """What the run's influence has sketches pass through; None for nothing."""
        return fit_preconditioner(self.settings)

    def features(self, sketches: np.ndarray) -> npt.NDArray[np.float32]:
        """What influence is the cosine of (N, D), of unit-length sketches (N, D)."""
        rows = sketches if self.preconditioner is None else self.preconditioner.apply(sketches)
        return np.asarray(rows, dtype=np.float32)

    def known_sketch(self, question: Example) -> np.ndarray | None:
        """The unit-length sketch (1, D) that the run holds of a query of this content, if it does."""
        schema = schemas.sketches(self.settings.sketch.width, self.settings.sketch.dtype)
        same = pc.field("content_hash") == question.content_hash
        record = sketch.state(self.settings.root)
        if not record.read(sketch.QUERIES, schema, ["content_hash"], same).num_rows:
            return None
        return sketch_matrix(record.read(sketch.QUERIES, schema, where=same))[:1]
