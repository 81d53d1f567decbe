"""The usual way to per-example gradients: PEFT and autograd, one example a step.

Written from the description of Influcoder's code (arXiv 2606.13668): a LoRA adapter by PEFT, the
gradients of all its A and B in one vector, and a CountSketch whose buckets and signs were drawn once
and are stored. The loss is the model's own, with logits at every position.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.adapter import AdapterWeights
from influcoder_ray.gradients.specs import AdapterSpec


class OneAtATime:
    """A causal LM inside PEFT that gives one example's gradient after the other's.

    Args:
        peft_model: with its LoRA adapter; everything else is frozen.
        weights: the fresh adapter whose A matrices it is to have.
        width: D of the sketch.
        seed: of the stored buckets and signs.
    """

    def __init__(
        self, peft_model: PeftModel, weights: Sequence[AdapterWeights], *, width: int, seed: int
    ) -> None:
        self._model = peft_model.eval()
        self._device = weights[0].a.device
        self._width = width
        self._a: list[nn.Parameter] = []
        self._b: list[nn.Parameter] = []
        modules = dict(peft_model.get_base_model().named_modules())
        for w in weights:
            layer = modules[w.target.name]
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            a.data.copy_(w.a)
            self._a.append(a)
            self._b.append(b)
        count = sum(p.numel() for p in self._a + self._b)
        generator = torch.Generator().manual_seed(seed)
        self._buckets = torch.randint(width, (count,), generator=generator).to(self._device)
        self._signs = (torch.randint(2, (count,), generator=generator) * 2 - 1).float().to(self._device)

    def sketches(self, tokens: Sequence[Tokens]) -> Tensor:
        """The sketched gradient of each example: (N, D) float32."""
        sketches = torch.zeros(len(tokens), self._width, device=self._device)
        for row, t in zip(sketches, tokens, strict=True):
            self._backward(t)
            row.index_add_(0, self._buckets, _flat_gradients(self._a + self._b) * self._signs)
        return sketches

    def gradients_of_b(self, tokens: Sequence[Tokens]) -> Tensor:
        """What of each example's gradient is not zero, dL/dB, module by module: (N, G) float32."""
        rows = []
        for t in tokens:
            self._backward(t)
            rows.append(_flat_gradients(self._b))
        return torch.stack(rows)

    def _backward(self, tokens: Tokens) -> None:
        self._model.zero_grad(set_to_none=True)
        ids = torch.tensor([tokens.ids], device=self._device)
        labels = ids.clone()
        labels[0, : tokens.labelled_from] = -100
        # No cache of keys and values: a kindness to this way, which has no use for one.
        self._model(input_ids=ids, labels=labels, use_cache=False).loss.backward()


@contextmanager
def one_at_a_time(
    model: nn.Module, weights: Sequence[AdapterWeights], adapter: AdapterSpec, *, width: int, seed: int
) -> Iterator[OneAtATime]:
    """While it lasts, the model is inside PEFT; afterwards it is what it was.

    Args:
        weights: of the fresh adapter that `adapter` describes.
    """
    targets = adapter.targets if isinstance(adapter.targets, str) else list(adapter.targets)
    lora = LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha or 2 * adapter.rank, target_modules=targets, bias="none"
    )
    peft_model = get_peft_model(model, lora)
    try:
        yield OneAtATime(peft_model, weights, width=width, seed=seed)
    finally:
        peft_model.unload()


def _flat_gradients(parameters: Sequence[nn.Parameter]) -> Tensor:
    return torch.cat([p.grad.flatten().float() for p in parameters if p.grad is not None])
