"""How many floating-point operations a batch's gradients need."""

from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D


def forward_backward_flops(model: nn.Module, lengths: Sequence[int], labelled: Sequence[int]) -> int:
    """FLOPs of the forward pass and of the backward pass through activations alone, for N examples.

    A frozen matrix of P numbers costs 2 P for each token forward and 2 P backward: there is no product
    for its own gradient, so 4 P where training takes 6 P (Kaplan et al., arXiv 2001.08361, section 2.1).
    Embeddings are looked up and cost nothing; the output head is needed at labelled tokens alone.
    Attention costs 4 d a head, layer and pair of tokens that see each other forward, 8 d backward
    (PaLM, arXiv 2204.02311, appendix B); a causal example of T tokens has T (T + 1) / 2 such pairs.
    Norms, activation functions and the per-example work are not counted: they are overhead. Neither
    are experts' matrices that are fused into one parameter.

    Args:
        lengths: tokens of each example (N,).
        labelled: those that carry the loss (N,).
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    body = sum(m.weight.numel() for m in linear if m is not head)
    config = model.config.get_text_config()  # type: ignore[operator,union-attr]
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    pairs = sum(length * (length + 1) // 2 for length in lengths)
    attention = 12 * config.num_hidden_layers * heads * head_size * pairs
    return 4 * (body * sum(lengths) + head.weight.numel() * sum(labelled)) + attention
