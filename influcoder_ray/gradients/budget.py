"""How many tokens a batch has where the settings do not say."""

import torch
from transformers import PretrainedConfig

from influcoder_ray.gradients.dry_run import Unpredictable
from influcoder_ray.gradients.memory import tokens_per_batch_within
from influcoder_ray.gradients.specs import AdapterSpec, ModelSpec

# Of a CPU's: from here on more tokens make a product no faster, and the caches hold less of them.
CPU_TOKENS = 1_024
# Of a GPU's: more than this keeps no card busier.
MOST_TOKENS = 131_072
# Where nothing can be predicted; running out of memory halves it.
_UNKNOWN_TOKENS = 8_192
# The rest is for what no prediction sees: fragments, libraries' workspaces, the device's own context.
_USABLE_SHARE = 0.8
# The widest sketch: the share that sketches have in a batch is small.
_WIDTH = 262_144


def tokens_per_batch(
    config: PretrainedConfig, spec: ModelSpec, adapter: AdapterSpec, device: torch.device
) -> int:
    """The token budget that the settings name, or one that suits the device.

    A GPU's is told by its size, not by what is free: cards of one kind form the same batches.

    Raises:
        UserError: the device has no room for one example of `model.max_tokens`.
    """
    if spec.tokens_per_batch is not None:
        return spec.tokens_per_batch
    if device.type == "cpu":
        return CPU_TOKENS
    memory_bytes = torch.cuda.get_device_properties(device).total_memory
    try:
        within = tokens_per_batch_within(
            int(_USABLE_SHARE * memory_bytes), config, spec, adapter, width=_WIDTH, device=device
        )
    except Unpredictable:
        return _UNKNOWN_TOKENS
    return min(within, MOST_TOKENS)
