"""The LoRA adapter: peft decides which modules carry one, we hold its matrices beside them.

LoRA (Hu et al., arXiv 2106.09685, section 4.1): y = W x + s B A x with A (R, I), B (O, R) and
s = alpha / R (rank-stabilised: alpha / sqrt(R)). A fresh adapter has B = 0: the model computes what
it did without, dL/dA is zero, and dL/dB is a one-sided random projection of dL/dW.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import load_peft_weights
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from influcoder_ray.errors import UserError
from influcoder_ray.gradients.hashing import key_of, uniform
from influcoder_ray.gradients.loading import skeleton
from influcoder_ray.gradients.specs import AdapterSpec

_SLOT = "default"


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


def find_targets(config: PretrainedConfig, spec: AdapterSpec) -> list[TargetModule]:
    """The modules of a model that carry the adapter, in the model's order; reads no weights.

    Raises:
        UserError: nothing matches, a match is no linear layer, or a trained adapter is no plain LoRA.
    """
    lora = _lora_config(spec)
    setting = "adapter.path" if spec.path else "adapter.targets"
    try:
        adapted = get_peft_model(skeleton(config), lora, adapter_name=_SLOT)
    except ValueError as error:
        raise UserError(
            f"{setting}: {lora.target_modules} fits no module of {config.model_type} that can carry LoRA "
            f"({str(error).splitlines()[0]}); name linear modules of this model, or all-linear"
        ) from error
    targets = []
    for path, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer):
            name = path.removeprefix("base_model.model.")
            base = layer.get_base_layer()
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


def adapter_weights(
    targets: list[TargetModule], spec: AdapterSpec, *, seed: int, device: torch.device, dtype: torch.dtype
) -> list[AdapterWeights]:
    """The matrices of each target: a trained adapter's own, or a fresh one from (seed, module name).

    A fresh A is uniform within 1 / sqrt(I), peft's own initial distribution.
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
    trained = load_peft_weights(spec.path, device="cpu")
    return [
        AdapterWeights(
            t,
            trained[f"base_model.model.{t.name}.lora_A.weight"].to(device, dtype),
            trained[f"base_model.model.{t.name}.lora_B.weight"].to(device, dtype),
        )
        for t in targets
    ]


def _lora_config(spec: AdapterSpec) -> LoraConfig:
    if spec.path is None:
        targets: Any = spec.targets if isinstance(spec.targets, str) else list(spec.targets)
        return LoraConfig(
            r=spec.rank, lora_alpha=spec.alpha or 2 * spec.rank, target_modules=targets, bias="none"
        )
    try:
        config = PeftConfig.from_pretrained(spec.path)
    except (ValueError, OSError) as error:
        raise UserError(
            f"adapter.path: {spec.path} is no PEFT adapter; give a folder with adapter_config.json"
        ) from error
    if not isinstance(config, LoraConfig):
        raise UserError(f"adapter.path: {spec.path} is a {config.peft_type} adapter; give a LoRA adapter")
    extras = {
        "use_dora": config.use_dora,
        "bias": config.bias != "none",
        "modules_to_save": config.modules_to_save,
        "target_parameters": config.target_parameters,
    }
    for name, used in extras.items():
        if used:
            raise UserError(
                f"adapter.path: {spec.path} uses {name}, which plain LoRA has not; give one without"
            )
    return config
