"""Model folders as stages need them: on this machine, whichever machine that is."""

from typing import TypeVar

from influcoder_ray.encoder.specs import EncoderSpec
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec
from influcoder_ray.tables.models import local_model_folder

S = TypeVar("S", ModelSpec, AdapterSpec, EncoderSpec)


def at_hand(spec: S, *, weights: bool = True) -> S:
    """The spec with its folder on this machine, fetched if it lies elsewhere; one without stays.

    Args:
        weights: whether they are fetched too.

    Raises:
        UserError: there is no such folder.
    """
    if spec.path is None:
        return spec
    setting = {ModelSpec: "model", AdapterSpec: "adapter", EncoderSpec: "encoder"}[type(spec)]
    marker = "adapter_config.json" if isinstance(spec, AdapterSpec) else "config.json"
    folder = local_model_folder(spec.path, setting=f"{setting}.path", weights=weights, marker=marker)
    return spec.model_copy(update={"path": folder})
