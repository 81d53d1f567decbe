"""What steers retraining."""

from typing import Any

from pydantic import Field, field_validator

from influcoder_ray.spec import Spec

# Named in the fingerprint: another way to choose examples, or to train, makes other losses.
SCHEME = "finetune-1"
# How many there are of a kind decides no fine-tune's numbers: more of them can be added to what is there.
COUNTS = frozenset({"seeds", "subsets", "subset_seeds"})


class FineTuneSpec(Spec):
    """One fine-tune of a LoRA adapter: AdamW without weight decay, the learning rate falling to zero."""

    steps: int = Field(default=100, ge=1, description="Steps of each fine-tune, whatever it is made on.")
    batch_size: int = Field(default=8, ge=1, description="Examples of one step.")
    learning_rate: float = Field(
        default=5e-4, gt=0, description="Learning rate of the first step; it falls in a line to zero."
    )
    rank: int = Field(
        default=8,
        ge=1,
        description="Rank of the adapter that is trained, unless the run explains a trained one: that is "
        "then trained further.",
    )


class ValidateSpec(FineTuneSpec):
    """The proof of attributions by retraining."""

    seeds: int = Field(
        default=0,
        ge=0,
        description="Fine-tunes of each kind, with the run's seed, the next one and so on: on the most "
        "influential share of the pool and on random ones, on all of it, and on what is left without the "
        "most influential share and without random ones; 0 for none.",
    )
    subsets: int = Field(
        default=0,
        ge=0,
        description="Random subsets of the pool to fine-tune on, for the linear datamodelling score; 0 for "
        "none, else at least 3.",
    )
    subset_seeds: int = Field(
        default=1, ge=1, description="Fine-tunes on each random subset, over which its losses are averaged."
    )
    pool: int = Field(
        default=500, ge=2, description="Examples to choose from, out of the sample's test split."
    )
    queries: int = Field(
        default=50,
        ge=1,
        description="Queries whose loss is measured, out of the sample's test split, at most half of it; by "
        "the others there the examples are chosen.",
    )
    share: float = Field(
        default=0.1, gt=0, le=0.5, description="Share of the pool that is selected, and that is taken out."
    )
    alpha: float = Field(default=0.5, gt=0, lt=1, description="Share of the pool in each random subset.")

    @field_validator("subsets")
    @classmethod
    def _enough_to_rank(cls, subsets: int) -> int:
        if 0 < subsets < 3:
            raise ValueError("so few subsets have no rank correlation; give 0 or at least 3")
        return subsets

    @property
    def fine_tuning(self) -> dict[str, Any]:
        """The fields that steer each fine-tune, by name."""
        return self.model_dump(mode="json", include=set(FineTuneSpec.model_fields))
