"""A causal LM from its folder: its config, its bare structure, its frozen weights."""

import os
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from influcoder_ray.errors import UserError
from influcoder_ray.gradients.specs import ModelSpec

_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def load_config(spec: ModelSpec, *, weights: bool = True) -> PretrainedConfig:
    """The model's config.

    Args:
        weights: whether the folder has to hold weights too.

    Raises:
        UserError: there is no such folder, it holds no model or none that is a causal LM, or the window is
            wider than its positions.
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
    if weights and not any(Path(spec.path).glob("*.safetensors")):
        raise UserError(f"model.path: {spec.path} holds no weights; give a folder with model.safetensors")
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    # Less than one, as XLNet's, is no limit.
    if positions is not None and 0 < positions < spec.max_tokens:
        raise UserError(
            f"model.max_tokens: {spec.max_tokens} is more than the {positions} positions of {spec.path}; "
            f"give at most {positions}"
        )
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
    """The model in evaluation mode with frozen weights. Safetensors only: no pickle is loaded.

    Raises:
        UserError: gradient checkpointing is asked of a model that has no layers marked for it.
    """
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        spec.path,
        dtype=weights_dtype(spec),
        use_safetensors=True,
        trust_remote_code=spec.trust_remote_code,
    )
    model.to(device)
    dtype = arithmetic_dtype(weights_dtype(spec), device)
    # Only where it widens: it would round as well what a model keeps in float32 beside weights of 16 bits,
    # its rotary frequencies above all, with which far positions end at other angles.
    if dtype is not weights_dtype(spec):
        model.to(dtype)
    if spec.gradient_checkpointing and not checkpoint_layers(model):
        raise UserError(
            f"model.gradient_checkpointing: {spec.path} has no layers that can be run again; leave it off"
        )
    return model.eval().requires_grad_(False)


def weights_dtype(spec: ModelSpec) -> torch.dtype:
    """The number type to which weights are rounded."""
    return torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32


def arithmetic_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The number type in which weights of a type are best computed with on a device.

    A CPU without instructions for bfloat16 emulates it, several times slower than float32: there the
    weights keep their rounded values and the arithmetic is float32.
    """
    if dtype is not torch.bfloat16 or device.type != "cpu":
        return dtype
    # Older versions of torch cannot tell; slow would be worse than exact.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    has_bfloat16 = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return dtype if has_bfloat16 else torch.float32


def checkpoint_layers(model: nn.Module) -> int:
    """Let each of the model's layers keep its input alone and run again in the backward pass.

    Returns how many layers there are. transformers' own switch works in training mode only, which
    would bring dropout with it.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    return len(layers)
