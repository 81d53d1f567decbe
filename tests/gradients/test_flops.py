"""FLOPs are those of the products that the work needs, and of no others."""

from tiny import causal_config, causal_lm

from influcoder_ray.gradients.flops import forward_backward_flops


def test_flops_of_a_llama_are_those_counted_by_hand() -> None:
    """Prevents a utilisation that counts embeddings, unlabelled logits or weight gradients."""
    model = causal_lm(causal_config("llama"))
    # Two layers of width 32: q and o (32 x 32), k and v (16 x 32: two of four heads), three of 48 x 32.
    body = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
    head = 512 * 32
    # Scores and values at 2 FLOPs a number, twice as much backward; 1 + 2 + ... + T pairs of tokens.
    attention = 2 * 4 * 8 * (2 + 2) * 3 * (6 + 15)
    assert forward_backward_flops(model, [3, 5], [2, 1]) == 4 * (body * 8 + head * 3) + attention
