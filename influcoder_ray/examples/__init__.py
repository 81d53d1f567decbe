"""What one example is: an id, a prompt, a response, where it lies, and its tokens with a loss mask."""

from influcoder_ray.examples.columns import ColumnSpec
from influcoder_ray.examples.example import Example, Turn

__all__ = ["ColumnSpec", "Example", "Turn"]
