"""The LoRA adapter: peft decides which modules carry one, we hold its matrices beside them.

LoRA (Hu et al., arXiv 2106.09685, section 4.1): y = W x + s B A x with A (R, I), B (O, R) and
s = alpha / R (rank-stabilised: alpha / sqrt(R)). A fresh adapter has B = 0: the model computes what
it did without, dL/dA is zero, and dL/dB is a one-sided random projection of dL/dW.
"""

import copy
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from influcoder_ray.errors import UserError
from influcoder_ray.gradients.hashing import key_of, uniform
from influcoder_ray.gradients.loading import skeleton
from influcoder_ray.gradients.specs import AdapterSpec

_SLOT = "default"
_PREFIX = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"
# These ways to begin training take a part out of the model's own weights and into the adapter, so that
# the adapter is at home on weights that the model's folder does not hold.
_CHANGE_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


@dataclass(frozen=True)
class TargetModule:
    """A module that carries an adapter: its name in the model, shapes and scaling s."""

    name: str
    in_features: int
    out_features: int
    rank: int
    scaling: float


@dataclass(frozen=True)
class AdapterWeights:
    """The adapter of one module: A (R, I), and B (O, R) or None where the adapter is fresh."""

    target: TargetModule
    a: Tensor
    b: Tensor | None

    @property
    def gradient_size(self) -> int:
        """Numbers in this module's gradient: O R, and R I more where B is not zero."""
        return self.target.out_features * self.target.rank + (0 if self.b is None else self.a.numel())

    def to(self, dtype: torch.dtype) -> "AdapterWeights":
        """The same matrices in another number type."""
        return AdapterWeights(self.target, self.a.to(dtype), None if self.b is None else self.b.to(dtype))


def find_targets(config: PretrainedConfig, spec: AdapterSpec) -> list[TargetModule]:
    """The modules of a model that carry the adapter, in the model's order; reads no weights.

    Raises:
        UserError: nothing matches, a match is no linear layer, or a trained adapter is no plain LoRA.
    """
    setting = _setting(spec)
    bare = skeleton(config)
    head = bare.get_output_embeddings()  # type: ignore[operator]
    adapted = attach(bare, spec)
    targets = []
    for path, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer):
            name = path.removeprefix(_PREFIX)
            base = layer.get_base_layer()
            if base is head:
                raise UserError(f"{setting}: {name} is the output head; name linear modules below it")
            if not isinstance(base, nn.Linear | Conv1D):
                raise UserError(
                    f"{setting}: {name} is a {type(base).__name__}, not a linear layer; name linear modules"
                )
            targets.append(
                TargetModule(
                    name, layer.in_features, layer.out_features, layer.r[_SLOT], layer.scaling[_SLOT]
                )
            )
    return targets


def attach(model: nn.Module, spec: AdapterSpec) -> PeftModel:
    """Put peft's adapter into a model, in place; its matrices are to be set, see `adapter_matrices`.

    Raises:
        UserError: nothing matches, or a trained adapter is no plain LoRA.
    """
    lora = _lora_config(spec)
    config: Any = model.config
    if spec.path is None:
        # By a mixture's type peft takes names of targets for its fused experts, even where linear modules
        # (dense layers, shared experts) go by them: it is not told the type.
        typeless = copy.copy(config)
        typeless.model_type = ""
        model.config = typeless
    try:
        return get_peft_model(model, lora, adapter_name=_SLOT)
    except (ValueError, re.error) as error:
        raise UserError(
            f"{_setting(spec)}: {lora.target_modules} fits no module of {config.model_type} that can carry "
            f"LoRA ({str(error).splitlines()[0]}); name linear modules of this model, or all-linear"
        ) from error
    finally:
        model.config = config


def adapter_matrices(adapted: PeftModel) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """The matrices A (R, I) and B (O, R) that peft trains, by the name of their module in the model."""
    return {
        path.removeprefix(_PREFIX): (layer.lora_A[_SLOT].weight, layer.lora_B[_SLOT].weight)
        for path, layer in adapted.named_modules()
        if isinstance(layer, LoraLayer)
    }


def adapter_weights(
    targets: list[TargetModule], spec: AdapterSpec, *, seed: int, device: torch.device, dtype: torch.dtype
) -> list[AdapterWeights]:
    """The matrices of each target: a trained adapter's own, or a fresh one from (seed, module name).

    A fresh A is uniform within 1 / sqrt(I), peft's own initial distribution.

    Raises:
        UserError: the trained adapter was trained on another model.
    """
    if spec.path is None:
        return [
            AdapterWeights(
                t,
                uniform(
                    t.rank * t.in_features,
                    key_of(seed, "lora_A", t.name),
                    1 / math.sqrt(t.in_features),
                    device,
                )
                .view(t.rank, t.in_features)
                .to(dtype),
                None,
            )
            for t in targets
        ]
    trained = load_file(Path(spec.path) / _WEIGHTS)
    expected = {}
    for t in targets:
        expected[f"{_PREFIX}{t.name}.lora_A.weight"] = (t.rank, t.in_features)
        expected[f"{_PREFIX}{t.name}.lora_B.weight"] = (t.out_features, t.rank)
    found = {name: tuple(matrix.shape) for name, matrix in trained.items()}
    if found != expected:
        name = min(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise UserError(
            f"adapter.path: {spec.path} was trained on another model ({name}: {found.get(name, 'none')} there"
            f", {expected.get(name, 'none')} in this model); give an adapter of this model"
        )
    matrices = {name: matrix.to(device, dtype) for name, matrix in trained.items()}
    return [
        AdapterWeights(
            t,
            matrices[f"{_PREFIX}{t.name}.lora_A.weight"],
            matrices[f"{_PREFIX}{t.name}.lora_B.weight"],
        )
        for t in targets
    ]


def _setting(spec: AdapterSpec) -> str:
    return "adapter.path" if spec.path else "adapter.targets"


def _lora_config(spec: AdapterSpec) -> LoraConfig:
    if spec.path is None:
        targets: Any = spec.targets if isinstance(spec.targets, str) else list(spec.targets)
        return LoraConfig(
            r=spec.rank, lora_alpha=spec.alpha or 2 * spec.rank, target_modules=targets, bias="none"
        )
    folder = Path(spec.path)
    # Looked for here, since peft looks on the hub, or for a pickle, where it finds none.
    for file in ("adapter_config.json", _WEIGHTS):
        if not (folder / file).is_file():
            raise UserError(f"adapter.path: {spec.path} is no PEFT adapter; give a folder with {file}")
    try:
        config = PeftConfig.from_pretrained(spec.path)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"adapter.path: {spec.path} has no adapter_config.json that peft can read ({error}); "
            "give a LoRA adapter"
        ) from error
    # By its type: AdaLoRA's config, for one, is a kind of LoRA's.
    if not isinstance(config, LoraConfig) or config.peft_type != PeftType.LORA:
        kind = getattr(config.peft_type, "value", "nameless")
        raise UserError(f"adapter.path: {spec.path} is a {kind} adapter; give a LoRA adapter")
    extras = {
        "use_dora": config.use_dora,
        "bias": config.bias != "none",
        "modules_to_save": config.modules_to_save,
        "target_parameters": config.target_parameters,
        "lora_bias": config.lora_bias,
        "alora_invocation_tokens": config.alora_invocation_tokens,
        "layer_replication": config.layer_replication,
        "trainable_token_indices": config.trainable_token_indices,
        "use_qalora": config.use_qalora,
        f"init_lora_weights={config.init_lora_weights}": str(config.init_lora_weights).startswith(
            _CHANGE_THE_MODEL
        ),
    }
    for name, used in extras.items():
        if used:
            raise UserError(
                f"adapter.path: {spec.path} uses {name}, which plain LoRA has not; give one without"
            )
    # Its matrices are read from the folder: how they were begun with does not matter any more.
    config.init_lora_weights = True
    return config
