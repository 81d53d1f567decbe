"""What steers influence: the measure in which two sketches are compared."""

from typing import Literal

from pydantic import Field

from influcoder_ray.spec import Spec


class InfluenceSpec(Spec):
    """How exact influence is taken from two sketches."""

    preconditioner: Literal["none", "mixed_hessian"] = Field(
        default="none",
        description="What sketches pass through before their cosine: nothing, or the inverse root of "
        "TrackStar's mixed Hessian, which turns down directions that most queries share.",
    )
    mixing: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Share of the queries in the mixed Hessian; the rest is the pool's.",
    )
    damping: float = Field(
        default=1.0,
        gt=0,
        description="What is added to every eigenvalue of the mixed Hessian, as a multiple of their mean.",
    )
