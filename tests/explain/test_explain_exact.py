"""What exact influence cannot be split into tokens is refused before any model is loaded."""

from types import SimpleNamespace

import pytest

from influcoder_ray.errors import UserError
from influcoder_ray.examples import Example
from influcoder_ray.explain.exact import influence_by_token
from influcoder_ray.gradients.specs import AdapterSpec


def test_steps_of_adam_are_not_split_over_tokens() -> None:
    """Prevents highlights that do not add up to the influence which the run's settings define."""
    adapter = AdapterSpec(path="adapter", optimizer_state="optimizer.safetensors")
    run = SimpleNamespace(settings=SimpleNamespace(adapter=adapter))
    example = Example("e", "a", "b", "f:0")
    with pytest.raises(UserError, match=r"^adapter\.optimizer_state: .* no sum over tokens"):
        influence_by_token(run, example, [example])
