"""What steers the student and its distillation."""

from typing import Literal

from pydantic import Field

from influcoder_ray.spec import Spec

# Beside a trained encoder's weights: the figures of every epoch, and which one was chosen.
HISTORY = "distillation.json"


class EncoderSpec(Spec):
    """The text encoder that is trained and then embeds the corpus."""

    path: str = Field(
        description="Folder of the encoder to start from, in Hugging Face or sentence-transformers layout."
    )
    max_tokens: int = Field(
        default=256, ge=8, description="The window: tokens of a text that are used, special tokens included."
    )
    separator: str | None = Field(
        default=None,
        description="What stands between prompt and response; the tokenizer's own separator if unset, "
        "and a line break where it has none.",
    )
    tokens_per_batch: int = Field(
        default=2048, ge=8, description="Tokens of one forward pass, padding included."
    )
    pooling: Literal["auto", "mean", "cls"] = Field(
        default="auto",
        description="How token states become one vector; auto: as the folder's sentence-transformers "
        "modules say, else the mean.",
    )


class DistillSpec(Spec):
    """How the student is trained."""

    epochs: int = Field(
        default=8, ge=1, description="Passes over the training queries or pool, whichever takes more steps."
    )
    queries_per_step: int = Field(default=8, ge=1, description="Queries that meet in a step.")
    candidates_per_step: int = Field(default=16, ge=2, description="Pool examples that meet in a step.")
    learning_rate: float = Field(default=5e-5, gt=0, description="Peak learning rate of AdamW.")
    warmup_share: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises linearly."
    )
    weight_decay: float = Field(default=0.01, ge=0, description="Weight decay of AdamW.")
    listwise_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Weight of the row-wise Kullback-Leibler loss; the rest is one minus Pearson's "
        "correlation over the block. The paper's loss is 0.5.",
    )
    temperature: float = Field(
        default=0.05, gt=0, description="Temperature of the row-wise Kullback-Leibler loss."
    )
