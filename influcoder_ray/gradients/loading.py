"""A causal LM from its folder: its config, its bare structure, its frozen weights."""

import os
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from influcoder_ray.errors import UserError
from influcoder_ray.gradients.specs import ModelSpec

_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def load_config(spec: ModelSpec) -> PretrainedConfig:
    """The model's config.

    Raises:
        UserError: there is no such folder, it holds no model, or none that is a causal LM.
    """
    if not os.path.isdir(spec.path):  # noqa: PTH112 - the path is the user's word, kept as it is
        raise UserError(
            f"model.path: {spec.path} is no folder; give a causal LM's folder in Hugging Face layout"
        )
    try:
        config = AutoConfig.from_pretrained(spec.path, trust_remote_code=spec.trust_remote_code)
    except (ValueError, OSError) as error:
        raise UserError(
            f"model.path: {spec.path} is no model ({str(error).splitlines()[0]}); "
            "give a folder with config.json"
        ) from error
    names = config.architectures or []
    # An encoder with a head for causal LM still looks at both sides unless its config says decoder.
    both_sides = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        config, "is_decoder", False
    )
    other_head = bool(names) and not any(name.endswith(_CAUSAL) for name in names)
    if both_sides or other_head or config.is_encoder_decoder:
        name = names[0] if names else config.model_type
        raise UserError(f"model.path: {spec.path} is a {name}, not a causal LM; give a decoder model")
    if not any(Path(spec.path).glob("*.safetensors")):
        raise UserError(f"model.path: {spec.path} holds no weights; give a folder with model.safetensors")
    return config


def skeleton(config: PretrainedConfig) -> nn.Module:
    """The model without weights: modules and shapes alone, on the meta device.

    Raises:
        UserError: there is no causal LM of this type.
    """
    # A config whose class came with the folder is there only because the user asked for its code.
    own_code = type(config).__module__.startswith("transformers_modules")
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=own_code)
    except ValueError as error:
        raise UserError(
            f"model.path: a {config.model_type} is not a causal LM; give a decoder model"
        ) from error
    return model


def load_model(spec: ModelSpec, device: torch.device) -> nn.Module:
    """The model in evaluation mode with frozen weights. Safetensors only: no pickle is loaded."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        spec.path,
        dtype=getattr(torch, spec.dtype),
        use_safetensors=True,
        trust_remote_code=spec.trust_remote_code,
    )
    return model.to(device).eval().requires_grad_(False)
