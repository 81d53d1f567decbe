"""How many floating-point operations an encoder's forward pass needs."""

from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D


def forward_flops(model: nn.Module, lengths: Sequence[int]) -> int:
    """FLOPs of one forward pass over N texts; training takes three times as many.

    A matrix of P numbers costs 2 P for each token (Kaplan et al., arXiv 2001.08361, section 2.1), and
    attention 4 d a head, layer and pair of tokens that see each other (PaLM, arXiv 2204.02311, appendix B):
    in an encoder T x T of a text of T tokens. Embeddings are looked up and cost nothing; padding, norms and
    activation functions are not counted.

    Args:
        lengths: tokens of each text (N,).
    """
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | Conv1D))
    config = model.config
    heads = config.num_attention_heads  # type: ignore[union-attr]
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads  # type: ignore[union-attr,operator]
    pairs = sum(length * length for length in lengths)
    return 2 * weights * sum(lengths) + 4 * config.num_hidden_layers * heads * head_size * pairs  # type: ignore
