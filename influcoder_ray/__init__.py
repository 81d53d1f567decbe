"""Training-data attribution for language models, as distributed batch stages on Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from influcoder_ray.explain.attributor import Attributor

__all__ = ["Attributor", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Not before it is asked for: whoever wants the version, or a stage, need not load what explains.
    if name == "Attributor":
        from influcoder_ray.explain.attributor import Attributor

        return Attributor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
