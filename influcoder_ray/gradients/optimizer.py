"""LESS: a pool example's gradient replaced by the step that Adam would take on it.

Xia et al., "LESS: Selecting Influential Data for Targeted Instruction Tuning" (arXiv 2402.04333,
section 3.1): a model that is trained with Adam does not move along a gradient g, but along

    Gamma = m / (sqrt(v) + eps),
    m = (beta1 m_t + (1 - beta1) g) / (1 - beta1^(t + 1)),
    v = (beta2 v_t + (1 - beta2) g^2) / (1 - beta2^(t + 1)),

where m_t and v_t are the moments after the t steps of a fine-tune, all products are taken number by
number, and Gamma is what AdamW subtracts (times the learning rate, without weight decay) if its next
gradient is g. Influence is the cosine of a query's plain gradient and a pool example's Gamma; it is
not symmetric, since only pool examples are trained on.

The two denominators are here those of Adam as Kingma and Ba define it and as torch computes it, with
t + 1 the number of the step to come. They are the same for every parameter, so that a cosine feels
them through eps alone.

A fine-tune leaves its moments in a safetensors file, in three lines of its own script:

    from influcoder_ray.gradients.optimizer import save_optimizer_state

    save_optimizer_state(optimizer, model.named_parameters(), "adapter/optimizer.safetensors")
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from influcoder_ray.errors import UserError
from influcoder_ray.gradients.adapter import TargetModule
from influcoder_ray.gradients.specs import AdapterSpec

_MOMENTS = ("exp_avg", "exp_avg_sq")
_PREFIX = "base_model.model."
# A LoRA matrix as a PEFT model names it, with the adapter's name in it, or as PEFT's file does, without.
_LORA_MATRIX = re.compile(r"(?P<matrix>.+\.lora_[AB])(\.[^.]+)?\.weight")


@dataclass(frozen=True)
class OptimizerState:
    """Adam's state after `step` steps on a LoRA adapter.

    `moments` holds (m_t, v_t) by parameter name: "<module>.lora_A" (R, I), and "<module>.lora_B" as
    (R, O), transposed, as gradients of it arrive.
    """

    step: int
    beta1: float
    beta2: float
    eps: float
    moments: Mapping[str, tuple[Tensor, Tensor]]

    @staticmethod
    def load(
        path: str | Path, targets: Sequence[TargetModule], *, device: torch.device | None = None
    ) -> "OptimizerState":
        """Read what `save_optimizer_state` wrote for an adapter on these modules.

        Args:
            device: where the moments are to lie, as float32; the CPU if unset.

        Raises:
            UserError: there is no such file, it belongs to another adapter, or it holds what Adam's
                state cannot be.
        """
        tensors, numbers = _read(Path(path))
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        expected = {
            f"{_PREFIX}{t.name}.{side}.weight.{moment}": shape
            for t in targets
            for side, shape in (
                ("lora_A", (t.rank, t.in_features)),
                ("lora_B", (t.out_features, t.rank)),
            )
            for moment in _MOMENTS
        }
        if shapes != expected:
            name = min(n for n in expected.keys() | shapes.keys() if expected.get(n) != shapes.get(n))
            raise UserError(
                f"{path}: is the optimizer state of another adapter ({name}: {shapes.get(name, 'none')} "
                f"there, {expected.get(name, 'none')} in this adapter); give this adapter's own"
            )
        for name, tensor in tensors.items():
            if not tensor.isfinite().all() or (name.endswith("exp_avg_sq") and (tensor < 0).any()):
                raise UserError(
                    f"{path}: {name} holds a negative number or one that is not finite, which Adam never "
                    "writes; save it again"
                )
        step, beta1, beta2, eps = (_number(path, numbers, key) for key in ("step", "beta1", "beta2", "eps"))
        if not (step >= 1 and step == int(step) and 0 <= beta1 < 1 and 0 <= beta2 < 1 and eps > 0):
            raise UserError(
                f"{path}: no Adam has step {step}, beta1 {beta1}, beta2 {beta2} and eps {eps}; save it again "
                "with save_optimizer_state"
            )

        def moments(name: str, *, transposed: bool) -> tuple[Tensor, Tensor]:
            first, second = (tensors[f"{_PREFIX}{name}.weight.{moment}"] for moment in _MOMENTS)
            if transposed:
                first, second = first.T.contiguous(), second.T.contiguous()
            return first.to(device, torch.float32), second.to(device, torch.float32)

        held = {}
        for t in targets:
            held[f"{t.name}.lora_A"] = moments(f"{t.name}.lora_A", transposed=False)
            held[f"{t.name}.lora_B"] = moments(f"{t.name}.lora_B", transposed=True)
        return OptimizerState(int(step), beta1, beta2, eps, held)

    def direction(self, name: str, gradients: Tensor) -> Tensor:
        """Gamma (N, rows, columns) float32 of each example's gradient of one parameter.

        Args:
            name: "<module>.lora_A" or "<module>.lora_B".
            gradients: (N, R, I) float32 of the first, (N, R, O) of the second; left as they are.

        Raises:
            KeyError: the state knows no parameter of this name.
        """
        first, second = self.moments[name]
        m = (self.beta1 * first + (1 - self.beta1) * gradients) / (1 - self.beta1 ** (self.step + 1))
        v = gradients.square().mul_(1 - self.beta2).add_(self.beta2 * second)
        return m.div_(v.div_(1 - self.beta2 ** (self.step + 1)).sqrt_().add_(self.eps))


def state_of(
    adapter: AdapterSpec, targets: Sequence[TargetModule], device: torch.device | None = None
) -> OptimizerState | None:
    """The state that lies in a trained adapter's folder; None where the settings name none.

    Raises:
        UserError: as `OptimizerState.load`.
    """
    if adapter.path is None or adapter.optimizer_state is None:
        return None
    return OptimizerState.load(Path(adapter.path) / adapter.optimizer_state, targets, device=device)


def save_optimizer_state(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, Tensor]], path: str | Path
) -> None:
    """Write the Adam state of a PEFT model's LoRA matrices, without pickle.

    Tensors are named as PEFT names the matrices in its adapter file, with ".exp_avg" and ".exp_avg_sq"
    added; step, beta1, beta2 and eps stand in the file's metadata. Parameters that are no LoRA
    matrices are left out.

    Args:
        optimizer: a torch.optim.Adam or AdamW that has stepped; of transformers' Trainer it is
            `trainer.optimizer.optimizer`.
        named_parameters: `model.named_parameters()` of the PEFT model.

    Raises:
        UserError: the optimizer is another, or has not stepped every LoRA matrix equally often with the
            same betas and eps.
    """
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        raise UserError(f"{type(optimizer).__name__} is no Adam; give a torch.optim.Adam or AdamW")
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    tensors: dict[str, Tensor] = {}
    numbers: set[tuple[float, ...]] = set()
    for name, parameter in named_parameters:
        lora = _LORA_MATRIX.fullmatch(name)
        if lora is None:
            continue
        state, group = optimizer.state.get(parameter, {}), groups.get(id(parameter), {})
        if not state:
            raise UserError(f"{name}: the optimizer has not stepped it; save after a step, all of it trained")
        if group["amsgrad"] or group["maximize"]:
            raise UserError(f"{name}: is stepped with amsgrad or maximize, which Gamma does not know")
        for moment in _MOMENTS:
            key = f"{lora['matrix']}.weight.{moment}"
            if key in tensors:
                raise UserError(f"{name}: a second adapter on one module; save a model with one adapter")
            tensors[key] = state[moment].detach().float().cpu().contiguous()
        numbers.add((float(state["step"]), *(float(beta) for beta in group["betas"]), float(group["eps"])))
    if len(numbers) != 1:
        raise UserError(
            f"{path}: LoRA matrices have {len(numbers)} kinds of step count, betas and eps; one is needed"
            if numbers
            else f"{path}: none of the parameters is a LoRA matrix; give those of a PEFT model"
        )
    values = zip(("step", "beta1", "beta2", "eps"), numbers.pop(), strict=True)
    save_file(tensors, path, metadata={key: repr(value) for key, value in values})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give one that save_optimizer_state wrote")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(
            f"{path}: is no safetensors file ({error}); give one that save_optimizer_state wrote"
        ) from error


def _number(path: str | Path, numbers: Mapping[str, str], key: str) -> float:
    try:
        value = float(numbers[key])
    except KeyError as error:
        raise UserError(f"{path}: its metadata has no {key}; save it with save_optimizer_state") from error
    except ValueError as error:
        raise UserError(f"{path}: {key} is {numbers[key]!r} in its metadata, no number") from error
    if not math.isfinite(value):
        raise UserError(f"{path}: {key} is {value} in its metadata; a finite number is needed")
    return value
