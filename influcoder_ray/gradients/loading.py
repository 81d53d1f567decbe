"""A causal LM from its folder: its config, its bare structure, its frozen weights."""

import os
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

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
    if names and not any(name.endswith(_CAUSAL) for name in names):
        raise UserError(f"model.path: {spec.path} is a {names[0]}, not a causal LM; give a decoder model")
    return config


def skeleton(config: PretrainedConfig) -> nn.Module:
    """The model without weights: modules and shapes alone, on the meta device."""
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def load_tokenizer(spec: ModelSpec) -> Any:
    """The model's tokenizer.

    Raises:
        UserError: the folder holds none.
    """
    try:
        return AutoTokenizer.from_pretrained(spec.path, trust_remote_code=spec.trust_remote_code)
    except (ValueError, OSError) as error:
        raise UserError(
            f"model.path: {spec.path} holds no tokenizer; give a folder with tokenizer.json"
        ) from error


def load_model(spec: ModelSpec, device: torch.device) -> nn.Module:
    """The model in evaluation mode with frozen weights. Safetensors only: no pickle is loaded."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        spec.path,
        dtype=getattr(torch, spec.dtype),
        use_safetensors=True,
        trust_remote_code=spec.trust_remote_code,
    )
    return model.to(device).eval().requires_grad_(False)
