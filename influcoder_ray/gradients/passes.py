"""One forward and one backward pass over a batch, with the loss that keeps examples apart."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from influcoder_ray.gradients.adapter import AdapterWeights
from influcoder_ray.gradients.attention import inputs_of
from influcoder_ray.gradients.capture import Taker, capturing
from influcoder_ray.gradients.layout import Layout


def run_passes(model: nn.Module, weights: list[AdapterWeights], layout: Layout, take: Taker) -> Tensor:
    """Run a batch forward and backward; returns each example's loss (N,) float32, in nats.

    The loss is the sum over examples of each one's mean over its labelled tokens, so that an
    example's gradient does not depend on its neighbours.

    Raises:
        UserError: an adapted module does not see each token once.
        torch.OutOfMemoryError: the batch is too large for the device.
    """
    with ExitStack() as stack:
        begin_backward = stack.enter_context(capturing(model, weights, layout, take))
        stack.enter_context(_activations_require_gradients(model))
        stack.enter_context(torch.enable_grad())
        losses = stack.enter_context(example_losses(model, layout))
        begin_backward()
        losses.sum().backward()
    return losses.detach()


@contextmanager
def example_losses(model: nn.Module, layout: Layout) -> Iterator[Tensor]:
    """Each example's loss (N,) float32: the mean over its labelled tokens, in nats.

    A backward pass has to run while it lasts, for gradient checkpointing runs layers again, which need this
    batch's attention.

    Raises:
        torch.OutOfMemoryError: the batch is too large for the device.
    """
    with _logits_only_at(model, layout.labelled), inputs_of(model, layout) as arguments:
        # Nothing here holds on to the logits: the largest tensor of all goes as soon as autograd lets it.
        token_losses = functional.cross_entropy(
            model(**arguments, use_cache=False).logits[0, : len(layout.targets)].float(),
            layout.targets,
            reduction="none",
        )
        # unsafe: unchecked lengths; the check would wait for a GPU to come to the end of the forward pass.
        yield torch.segment_reduce(token_losses, "mean", lengths=layout.counts, unsafe=True)


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """While it lasts, float32 products are formed at torch's named precision: "high" allows TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _activations_require_gradients(model: nn.Module) -> RemovableHandle:
    """While it lasts, activations carry gradients though every weight is frozen."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    # A copy, for some models scale their embeddings in place, which autograd allows of no leaf.
    handle: RemovableHandle = embedding.register_forward_hook(
        lambda _module, _inputs, output: output.requires_grad_().clone()
    )
    return handle


def _logits_only_at(model: nn.Module, labelled: Tensor) -> RemovableHandle:
    """While it lasts, the output head sees labelled positions only, as one row of them.

    The whole vocabulary's logits at every position would be the largest tensor of all. The model's
    own forward goes on from there, with whatever scaling or capping of logits it has.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    handle: RemovableHandle = head.register_forward_pre_hook(
        lambda _module, inputs: (inputs[0].flatten(0, -2).index_select(0, labelled)[None],)
    )
    return handle
