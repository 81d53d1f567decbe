"""How much of a model its adapter sees, told by the model's bare structure.

LoRA stands beside linear modules. Weights that no linear module holds carry none: the experts of a
mixture, say, which transformers keep fused, as one parameter of three dimensions a layer. A gradient on
the adapter is blind to whatever happens in the weights that it leaves out, so that they are named.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from influcoder_ray.gradients.adapter import TargetModule
from influcoder_ray.gradients.loading import skeleton

Kind = Literal["linear", "fused", "other"]

_REASONS: dict[Kind, str] = {
    "linear": "linear modules that are no targets",
    "fused": "fused weights are no linear modules",
    "other": "weights of modules that are not linear",
}
_NAMED = 4


@dataclass(frozen=True)
class LeftOut:
    """Weight matrices beside which no adapter stands.

    Attributes:
        name: of the parameter (of the module, where that is linear), numbers of layers folded to *.
        parameters: numbers in all that go by this name.
        kind: linear: a linear module that is no target; fused: several matrices in one parameter;
            other: a parameter of another module (a router, a convolution).
    """

    name: str
    parameters: int
    kind: Kind


@dataclass(frozen=True)
class Coverage:
    """The share of a model's weight matrices beside which an adapter stands.

    A weight matrix has two sides or more longer than 1 and is neither a bias, an embedding nor the
    output head, on which LoRA is not meant to be.

    Attributes:
        adapted_parameters: numbers in the weight matrices that carry an adapter.
        left_out: the others, largest first.
        embedding_parameters: numbers in embeddings and output head, tied ones once.
    """

    adapted_parameters: int
    left_out: tuple[LeftOut, ...]
    embedding_parameters: int

    @property
    def share_left_out(self) -> float:
        """Share of the weight matrices, in [0, 1]."""
        missing = sum(part.parameters for part in self.left_out)
        return missing / max(1, missing + self.adapted_parameters)

    def sentence(self) -> str:
        """What is left out, and why; empty where nothing is."""
        if not self.left_out:
            return ""
        names = ", ".join(part.name for part in self.left_out[:_NAMED])
        more = len(self.left_out) - _NAMED
        names += f" and {more} more" if more > 0 else ""
        reasons = "; ".join(dict.fromkeys(_REASONS[part.kind] for part in self.left_out))
        share = f"{_percent(self.share_left_out)} of the model's weight matrices"
        return f"the adapter leaves out {share}: {names} ({reasons})"


def coverage(config: PretrainedConfig, targets: Sequence[TargetModule]) -> Coverage:
    """What an adapter on these targets covers; reads no weights.

    Raises:
        UserError: there is no causal LM of this type.
    """
    model = skeleton(config)
    head = model.get_output_embeddings()  # type: ignore[operator]
    adapted_names = {t.name for t in targets}
    adapted = embedding = 0
    left_out: Counter[tuple[str, Kind]] = Counter()
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            # Experts' biases have two sides: one row an expert.
            sides = sum(size > 1 for size in parameter.shape)
            if sides < 2 or name.endswith("bias") or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if isinstance(module, nn.Embedding) or module is head:
                embedding += parameter.numel()
            elif path in adapted_names:
                adapted += parameter.numel()
            else:
                left_out[_left_out_as(path, name, module, sides)] += parameter.numel()
    parts = [LeftOut(name, count, kind) for (name, kind), count in left_out.most_common()]
    return Coverage(adapted, tuple(parts), embedding)


def _left_out_as(path: str, name: str, module: nn.Module, sides: int) -> tuple[str, Kind]:
    folded = ".".join("*" if part.isdigit() else part for part in path.split("."))
    if isinstance(module, nn.Linear | Conv1D):
        return folded, "linear"
    fused = sides > 2 and not isinstance(module, nn.modules.conv._ConvNd)
    return f"{folded}.{name}", "fused" if fused else "other"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "under 0.1%"
