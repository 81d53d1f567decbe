"""Each example's own adapter gradient out of one backward pass over a batch.

Let x_t be a module's input, g_t the loss gradient at its output, t a token of one example. With
y = W x + s B A x:
    dL/dB = s sum_t g_t (A x_t)^T   (O, R)
    dL/dA = s sum_t (B^T g_t) x_t^T (R, I)
A forward hook keeps A x (and x where B is not zero) and a hook on the output's gradient does the
sums over each example's tokens. Padding carries no loss, and so has g_t = 0.
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
from influcoder_ray.gradients.fused import kernels_on
from influcoder_ray.gradients.layout import Layout

# An adapter's matrices, in the order in which their gradients follow each other.
MATRICES = ("lora_B", "lora_A")
# (module name, "lora_B", gradients (N, R, O): dL/dB transposed) or (module name, "lora_A", (N, R, I)),
# float32: one call for each matrix of each module. The side along R comes first since a product of
# few rows by many is several times as fast as its transpose.
Consumer = Callable[[str, str, Tensor], None]
# What those gradients are sums of: (module name, matrix, narrow (rows, T, R), wide (rows, T, O or I), s);
# position t adds s narrow_t wide_t^T.
Taker = Callable[[str, str, Tensor, Tensor, float], None]


@contextmanager
def capturing(
    model: nn.Module, weights: Sequence[AdapterWeights], layout: Layout, take: Taker
) -> Iterator[Callable[[], None]]:
    """While it lasts, one forward and backward pass hands what gradients are made of to `take`.

    A trained adapter's own term is added to the forward pass. Factors are handed over module by
    module, as the backward pass reaches them, and can be dropped at once.

    Yields:
        A function to call between the two passes: what runs forward after it is a repetition, by
        gradient checkpointing, of what was seen before.

    Raises:
        UserError: from the forward pass, where an adapted module does not see each token once.
    """
    modules = dict(model.named_modules())
    state = _Progress({_last_name(w) for w in weights})
    handles = [
        modules[w.target.name].register_forward_hook(_forward_hook(w, layout, state, take)) for w in weights
    ]
    try:
        yield state.begin_backward
    finally:
        for handle in handles:
            handle.remove()


def summing(consume: Consumer, layout: Layout) -> Taker:
    """A taker that hands every example's gradients to `consume`."""

    kernels = kernels_on(layout.ids.device)
    starts = layout.starts if kernels is not None else None

    def take(module: str, matrix: str, narrow: Tensor, wide: Tensor, scaling: float) -> None:
        if kernels is None or wide.dtype == torch.float32:
            sums = outer_sums(narrow, wide, layout).mul_(scaling)
        else:
            few, many = (side.reshape(layout.size, -1) for side in (narrow, wide))
            sums = kernels.outer_sums(few, many, starts, scaling)
        consume(module, matrix, sums)

    return take


class _Progress:
    """Which modules the forward pass has been through, and whether it is over.

    Args:
        names: last names of all adapted modules, for what to name in place of one that cannot be.
    """

    def __init__(self, names: set[str]) -> None:
        self.names = names
        self.seen: set[str] = set()
        self.forward = True

    def begin_backward(self) -> None:
        self.forward = False


def _forward_hook(
    weights: AdapterWeights, layout: Layout, progress: _Progress, take: Taker
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    target, a, b = weights.target, weights.a, weights.b

    def hook(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x: Tensor = inputs[0]
        once = target.name not in progress.seen and x.numel() == layout.size * target.in_features
        if progress.forward and not (once and isinstance(output, Tensor)):
            others = ", ".join(sorted(n for n in progress.names - {_last_name(weights)} if not n.isdigit()))
            raise UserError(
                f"adapter.targets: {target.name} does not see every token of an example exactly once, or "
                "gives more than one product, so that examples cannot be told apart in it; name others"
                + (f": [{others}]" if others else "")
            )
        progress.seen.add(target.name)
        if b is None and (not progress.forward or not output.requires_grad):
            return output
        projected = (x.detach() if b is None else x) @ a.T
        if b is not None:
            output = output + target.scaling * (projected @ b.T)
        if not progress.forward or not output.requires_grad:
            return output
        kept_projected = projected.detach()
        kept_x = x.detach() if b is not None else None

        def hand_over(gradient: Tensor) -> None:
            take(target.name, "lora_B", kept_projected, gradient, target.scaling)
            if b is not None and kept_x is not None:
                take(target.name, "lora_A", gradient @ b, kept_x, target.scaling)

        output.register_hook(hand_over)
        return output

    return hook


def _last_name(weights: AdapterWeights) -> str:
    return weights.target.name.rpartition(".")[2]


def outer_sums(narrow: Tensor, wide: Tensor, layout: Layout) -> Tensor:
    """Sums over each example's tokens of outer products: (N, R, O) in float32.

    Args:
        narrow: (rows, T, R), or with rows and tokens folded into one axis.
        wide: (rows, T, O), likewise.
    """
    left, right = (side.reshape(layout.size, -1) for side in (narrow, wide))
    few, many = left.shape[1], right.shape[1]
    sums = torch.empty(layout.examples, few, many, device=wide.device)
    token = example = 0
    for run in layout.runs:
        tokens = slice(token, token := token + run.count * run.length)
        _products(
            left[tokens].view(run.count, run.length, few).transpose(1, 2),
            right[tokens].view(run.count, run.length, many),
            sums[example : (example := example + run.count)],
        )
    return sums


def _products(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Batched matrix products, summed in float32 and written to float32."""
    if left.dtype == torch.float32:
        torch.bmm(left, right, out=out)
    elif left.is_cuda:
        # Tensor cores add up 16-bit products in float32; this keeps what they have.
        torch.bmm(left, right, out_dtype=torch.float32, out=out)
    else:
        torch.bmm(left.float(), right.float(), out=out)
