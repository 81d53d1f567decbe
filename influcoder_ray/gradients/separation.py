"""Whether a model keeps the examples of a batch apart, tried out before any work.

A gradient is an example's own only if nothing that the model computes for it depends on its neighbours, on
padding or on tokens to come, and if each adapted module sees the tokens in the order of the input. Some
models look at both sides, though they are named causal; some put time before rows.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from influcoder_ray.errors import UserError
from influcoder_ray.examples.tokens import Tokens
from influcoder_ray.gradients.adapter import TargetModule
from influcoder_ray.gradients.attention import inputs_of
from influcoder_ray.gradients.layout import Layout, lay_out

# The second one is looked at, up to its last token; padding follows it.
_LENGTHS = (5, 4, 3, 7)
_LOOKED_AT = slice(7, 10)
_WORDS = 101
# What saw another example differs by far more than these shares. Rounding differs by far less, but in 16 bits
# it may lead a token to another expert of a mixture.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}


def refuse_mixing(model: nn.Module, targets: Sequence[TargetModule], *, path: str) -> None:
    """Refuse a model in which an example's numbers depend on other tokens than its own past.

    A few short examples are run twice, padded, the second time with other tokens everywhere but at the
    beginning of one; there the inputs of all adapted modules and the logits have to stay what they were.
    Whether packed examples give the same is for `why_not_packed` to find out.

    Args:
        path: of the model, for the error.

    Raises:
        UserError: naming what changed, or why the model does not run.
    """
    device = next(model.parameters()).device
    ids = (torch.arange(sum(_LENGTHS)) * 37 % _WORDS + 3).split(list(_LENGTHS))
    layout = lay_out([Tokens(tuple(part.tolist()), 1, False) for part in ids], packed=False, device=device)
    others = ((layout.ids + _WORDS // 2) % _WORDS + 3).flatten()
    others[_LOOKED_AT] = layout.ids.flatten()[_LOOKED_AT]
    try:
        first, second = (
            _seen(model, targets, replace(layout, ids=ids))
            for ids in (layout.ids, others.view_as(layout.ids))
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"model.path: {path} does not take token ids alone ({str(error).splitlines()[0]}); give a "
            "decoder model of texts"
        ) from error
    tolerance = _TOLERANCE[next(model.parameters()).dtype]
    for name, before in first.items():
        # Numbers that are not finite are found elsewhere, and said to be that.
        if (second[name] - before).norm() > tolerance * before.norm():
            raise UserError(
                f"model.path: what {path} computes for an example ({name}) changes with its neighbours in a "
                "batch or with tokens to come, so that no gradient is its own; give a decoder that reads "
                "every row by itself, from left to right"
            )


def _seen(model: nn.Module, targets: Sequence[TargetModule], layout: Layout) -> Mapping[str, Tensor]:
    """At the positions that are looked at: what each adapted module sees, by its name, and the logits."""
    modules = dict(model.named_modules())
    found: dict[str, Tensor] = {}

    def look_at(target: TargetModule) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # What does not see each token once is refused by `capture`, in its own words.
            if inputs[0].numel() == layout.size * target.in_features:
                found[target.name] = inputs[0].reshape(layout.size, -1)[_LOOKED_AT].float()

        stack.callback(modules[target.name].register_forward_pre_hook(hook).remove)

    with ExitStack() as stack, torch.no_grad(), inputs_of(model, layout) as arguments:
        for target in targets:
            look_at(target)
        found["logits"] = model(**arguments, use_cache=False).logits.flatten(0, -2)[_LOOKED_AT].float()
    return found
