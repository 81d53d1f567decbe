"""How many floating-point operations the work needs, and how many a card can do."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

# Dense peaks (no sparsity) of float32, TF32 and bfloat16 in FLOP/s, by the name that the driver gives
# the card. Source: NVIDIA's data sheets of each card. A card that is not here has no utilisation.
_PEAKS: dict[str, dict[str, float]] = {
    "NVIDIA A100-SXM4-40GB": {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12},
    "NVIDIA A100-SXM4-80GB": {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12},
    "NVIDIA A100 80GB PCIe": {"float32": 19.5e12, "tf32": 156e12, "bfloat16": 312e12},
    "NVIDIA H100 80GB HBM3": {"float32": 67e12, "tf32": 494.7e12, "bfloat16": 989.4e12},
    "NVIDIA H100 PCIe": {"float32": 51e12, "tf32": 378e12, "bfloat16": 756e12},
    "NVIDIA H200": {"float32": 67e12, "tf32": 494.7e12, "bfloat16": 989.4e12},
    "NVIDIA L4": {"float32": 30.3e12, "tf32": 60e12, "bfloat16": 121e12},
    "NVIDIA L40S": {"float32": 91.6e12, "tf32": 183e12, "bfloat16": 362e12},
}


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


def peak_flops_per_second(device: torch.device, dtype: str) -> float | None:
    """The card's dense peak for a number type; None on a CPU and for a card that is not known."""
    if device.type != "cuda":
        return None
    return _PEAKS.get(torch.cuda.get_device_name(device), {}).get(dtype)
