"""The base of every settings type: frozen, and refusing what it does not know."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A small immutable settings type that lives beside the code that it steers.

    Each field carries a sentence (`Field(description=...)`), unknown keys are refused, and values
    are checked when the object is made.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
