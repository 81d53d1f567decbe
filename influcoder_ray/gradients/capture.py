"""Each example's own adapter gradient out of one backward pass over a padded batch.

Let x_t be a module's input, g_t the loss gradient at its output, t a token of one example. With
y = W x + s B A x:
    dL/dB = s sum_t g_t (A x_t)^T   (O, R)
    dL/dA = s sum_t (B^T g_t) x_t^T (R, I)
A forward hook keeps A x (and x where B is not zero) and a hook on the output's gradient does the
sums over each row's tokens. Padding lies to the right, carries no loss, and so has g_t = 0.
A module has to see every token of the batch once, in order: some models fold rows and tokens into
one axis, which is undone; a module that sees a selection of tokens, or works twice, is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from influcoder_ray.errors import UserError
from influcoder_ray.gradients.adapter import AdapterWeights

# (parameter name, gradients (N, rows, columns) float32): one call for each matrix of each module.
Consumer = Callable[[str, Tensor], None]


@contextmanager
def capturing(
    model: nn.Module, weights: Sequence[AdapterWeights], shape: tuple[int, int], consume: Consumer
) -> Iterator[None]:
    """While it lasts, one forward and backward pass hands every example's gradients to `consume`.

    A trained adapter's own term is added to the forward pass. Gradients are handed over module by
    module, as the backward pass reaches them, and can be dropped at once.

    Args:
        shape: (N, T) of the batch.

    Raises:
        UserError: from the forward pass, where an adapted module does not see each token once.
    """
    modules = dict(model.named_modules())
    seen: set[str] = set()
    handles = [
        modules[w.target.name].register_forward_hook(_forward_hook(w, shape, seen, consume)) for w in weights
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward_hook(
    weights: AdapterWeights, shape: tuple[int, int], seen: set[str], consume: Consumer
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    target, a, b = weights.target, weights.a, weights.b

    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x: Tensor = inputs[0]
        if target.name in seen or x.numel() != shape[0] * shape[1] * target.in_features:
            raise UserError(
                f"adapter.targets: {target.name} does not see every token of an example exactly once, so "
                "that examples cannot be told apart in it; name targets without it"
            )
        seen.add(target.name)
        projected = x @ a.T
        if b is not None:
            output = output + target.scaling * (projected @ b.T)
        if not output.requires_grad:
            return output
        kept_projected = projected.detach()
        kept_x = x.detach() if b is not None else None

        def take(gradient: Tensor) -> None:
            consume(f"{target.name}.lora_B", target.scaling * _outer_sums(gradient, kept_projected, shape))
            if b is not None and kept_x is not None:
                consume(f"{target.name}.lora_A", target.scaling * _outer_sums(gradient @ b, kept_x, shape))

        output.register_hook(take)
        return output

    return hook


def _outer_sums(left: Tensor, right: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sum over tokens of the outer products of (N, T, O) and (N, T, I): (N, O, I) in float32."""
    left, right = left.reshape(*shape, -1), right.reshape(*shape, -1)
    return torch.bmm(left.float().transpose(1, 2), right.float())
