"""What steers the student and its distillation."""

from typing import Any, Literal

from pydantic import Field, model_validator

from influcoder_ray.spec import Spec

# Beside a trained encoder's weights: the figures of every epoch, and which one was chosen.
HISTORY = "distillation.json"
# Beside them too: what the familiarity of a text is measured against.
FAMILIARITY = "familiarity.safetensors"


class EncoderSpec(Spec):
    """The text encoder that is trained and then embeds the corpus."""

    path: str = Field(
        description="Folder of the encoder to start from, in Hugging Face or sentence-transformers layout."
    )
    max_tokens: int = Field(
        default=256, ge=8, description="The window: tokens of a text that are used, special tokens included."
    )
    long_texts: Literal["first", "mean"] = Field(
        default="first",
        description="What is embedded of a text that is longer than the window. first: one window, in which "
        "the response survives and the prompt loses its head; mean: that one and those behind it, whose "
        "states are averaged by their tokens. Training reads the first.",
    )
    most_windows: int = Field(
        default=8, ge=1, description="Windows of a text that long_texts: mean reads at most."
    )
    separator: str | None = Field(
        default=None,
        description="What stands between prompt and response; the tokenizer's own separator, or its end of "
        "text, if unset.",
    )
    tokens_per_batch: int | None = Field(
        default=None,
        ge=8,
        description="Tokens of one forward pass, padding included; unset: 2,048 in training, 32,768 where "
        "a GPU embeds, and 512 where a CPU does, in whose caches what a layer makes of them has room.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="In which numbers the encoder computes, its weights staying in float32; auto: bfloat16 "
        "on a GPU that has it, else float32.",
    )
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        default="auto",
        description="How token states become one vector: their mean, the first, or the last, as in decoders "
        "that embed; auto: as the folder's sentence-transformers modules say, else the mean.",
    )

    @property
    def windows_of_a_text(self) -> int:
        """How many windows of a text are embedded at most."""
        return self.most_windows if self.long_texts == "mean" else 1


class FamiliaritySpec(Spec):
    """How near a text lies to what the encoder was trained on."""

    neighbours: int = Field(
        default=5, ge=1, description="Nearest training texts whose mean distance is taken."
    )
    most_references: int = Field(
        default=8192,
        ge=1,
        description="Training texts that are compared with, and held-out texts that calibrate, at most; of "
        "more a seeded choice.",
    )


Recipe = Literal["spectral", "influcoder"]

# What a recipe sets that the settings leave open. Influcoder's are its paper's (arXiv 2606.13668).
_RECIPES: dict[Recipe, dict[str, Any]] = {
    "spectral": {"epochs": 4, "learning_rate": 3e-5},
    "influcoder": {"epochs": 8, "learning_rate": 5e-5},
}


class DistillSpec(Spec):
    """How the student is trained."""

    recipe: Recipe = Field(
        default="spectral",
        description="spectral: a head in closed form on features of the encoder, then the encoder below it; "
        "influcoder: the paper's, a pooled encoder trained on blocks of pairs.",
    )
    epochs: int = Field(
        default=4,
        ge=1,
        description="Passes over the training queries or pool, whichever takes more steps; 4, or 8 by the "
        "paper's recipe. The first one of the spectral recipe fits the head and takes no steps.",
    )
    fall_back: bool = Field(
        default=True,
        description="Keep the untrained encoder where no epoch agrees better with exact influence on the "
        "validation split; else the best epoch is kept whatever it reaches.",
    )
    queries_per_step: int = Field(default=8, ge=1, description="Queries that meet in a step.")
    candidates_per_step: int = Field(default=16, ge=2, description="Pool examples that meet in a step.")
    learning_rate: float = Field(
        default=3e-5, gt=0, description="Peak learning rate of AdamW; 3e-5, or 5e-5 by the paper's recipe."
    )
    warmup_share: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises linearly."
    )
    weight_decay: float = Field(default=0.01, ge=0, description="Weight decay of AdamW.")
    dimensions: int = Field(
        default=128, ge=1, description="Spectral: shared directions of the gradients that are predicted."
    )
    folds: int = Field(
        default=5, ge=2, description="Spectral: parts of the training texts, each predicted from the others."
    )
    anchors: int = Field(
        default=4096,
        ge=2,
        description="Spectral: training examples of a side that a step compares with.",
    )
    listwise_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Influcoder: weight of the row-wise Kullback-Leibler loss; the rest is one minus "
        "Pearson's correlation over the block.",
    )
    temperature: float = Field(
        default=0.05, gt=0, description="Influcoder: temperature of the row-wise Kullback-Leibler loss."
    )

    @model_validator(mode="before")
    @classmethod
    def _what_the_recipe_sets(cls, fields: Any) -> Any:
        recipe = fields.get("recipe", "spectral") if isinstance(fields, dict) else None
        return _RECIPES[recipe] | fields if isinstance(recipe, str) and recipe in _RECIPES else fields
