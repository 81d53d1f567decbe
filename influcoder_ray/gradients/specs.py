"""What steers the teacher."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from influcoder_ray.examples.tokens import Template
from influcoder_ray.spec import Spec

_SCHEME = "countsketch-affine-blocks-1"
# Positions in float32: sketches of bfloat16 models for which they were rounded may not stand beside others.
_SCHEMES = {"bfloat16": f"{_SCHEME}, float32 positions"}


def scheme(dtype: str) -> str:
    """Names in every fingerprint how sketches are made of a model of this type: another way gives others."""
    return _SCHEMES.get(dtype, _SCHEME)


class ModelSpec(Spec):
    """The causal LM whose behaviour is to be explained, and how examples are put before it."""

    path: str = Field(description="Folder of the causal LM in Hugging Face layout.")
    template: Template = Field(
        default="auto",
        description="How prompt and response are joined: the model's chat template, plain lines, or "
        "auto (the chat template where the tokenizer has one).",
    )
    max_tokens: int = Field(default=1024, ge=8, description="The window: tokens of an example that are used.")
    dtype: Literal["float32", "tf32", "bfloat16"] = Field(
        default="float32",
        description="Number type of weights and activations; tf32 is float32 with faster, rounded products "
        "on GPUs that have them.",
    )
    tokens_per_batch: int | None = Field(
        default=None,
        ge=8,
        description="Tokens of one forward and backward pass, padding included; if unset, 1,024 on a CPU and "
        "on a GPU what is predicted to fit its memory.",
    )
    layout: Literal["auto", "padded"] = Field(
        default="auto",
        description="How examples share a batch: auto packs them without padding where the model's "
        "attention can keep them apart, padded gives each a row of its own.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Keep each layer's input alone and run the layer again in the backward pass: a third "
        "more arithmetic, a fraction of the memory.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that the model's folder brings; off unless asked for."
    )


class AdapterSpec(Spec):
    """The LoRA adapter on whose weights gradients are taken: fresh and seeded, or a trained one."""

    path: str | None = Field(
        default=None, description="Folder of a trained PEFT LoRA adapter; the other fields then come from it."
    )
    rank: int = Field(default=16, ge=1, description="Rank R of a fresh adapter.")
    alpha: float | None = Field(default=None, gt=0, description="LoRA alpha of a fresh adapter; 2R if unset.")
    targets: str | tuple[str, ...] = Field(
        default="all-linear",
        description="Modules that carry a fresh adapter, as peft reads it: all-linear, names, or a pattern.",
    )
    optimizer_state: str | None = Field(
        default=None,
        description="File in a trained adapter's folder with Adam's state; pool gradients then become the "
        "steps that Adam would take on them (LESS).",
    )

    @model_validator(mode="after")
    def _state_of_a_trained_adapter(self) -> "AdapterSpec":
        if self.optimizer_state is not None and self.path is None:
            raise ValueError("optimizer_state is that of a trained adapter; give its folder as path")
        return self


class SketchSpec(Spec):
    """The CountSketch of gradients."""

    width: int = Field(
        default=16_384, ge=1_024, le=262_144, description="Width D of a sketch, a power of two."
    )
    dtype: Literal["float16", "float32"] = Field(
        default="float16", description="Number type in which unit-length sketches are stored."
    )

    @field_validator("width")
    @classmethod
    def _power_of_two(cls, width: int) -> int:
        if width & (width - 1):
            raise ValueError(f"{width} is no power of two; give one from 1024 to 262144")
        return width
