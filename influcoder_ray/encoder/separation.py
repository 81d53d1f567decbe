"""Whether an encoder gives each text token states of its own, tried out before any work.

Some mix tokens without regard to the mask (Fourier transforms, convolutions, landmarks): what they make of a
text depends on how far its batch is padded.
"""

from typing import Any

import torch
from torch import Tensor, nn

from influcoder_ray.errors import UserError

_LENGTHS = (9, 5)
_WORDS = 101
# States that saw padding differ by far more than this share, rounding by far less.
_TOLERANCE = 1e-2


def refuse_mixing(model: nn.Module, *, padding: int, path: str) -> None:
    """Refuse a model that gives no token states, or others where a text is padded.

    Args:
        padding: id of the token that fills up shorter texts.
        path: of the encoder, for the error.

    Raises:
        UserError: saying which of the two.
    """
    device = next(model.parameters()).device
    mask = (torch.arange(max(_LENGTHS)) < torch.tensor(_LENGTHS)[:, None]).long()
    ids = torch.where(mask.bool(), torch.arange(mask.numel()).view_as(mask) * 37 % _WORDS + 3, padding)
    ids, mask = ids.to(device), mask.to(device)
    both = _states(model, ids, mask, path)[1, : _LENGTHS[1]]
    alone = _states(model, ids[1:, : _LENGTHS[1]], mask[1:, : _LENGTHS[1]], path)[0]
    if (both - alone).norm() > _TOLERANCE * alone.norm():
        raise UserError(
            f"encoder.path: what {path} makes of a text changes with the padding of its batch; give an "
            "encoder that keeps to the mask"
        )


def _states(model: nn.Module, ids: Tensor, mask: Tensor, path: str) -> Tensor:
    """The last layer's token states (N, T, h)."""
    config: Any = model.config
    try:
        with torch.inference_mode():
            outputs = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"encoder.path: {path} does not take token ids alone ({str(error).splitlines()[0]}); give a text "
            "encoder"
        ) from error
    last = getattr(outputs, "last_hidden_state", None)
    layers = getattr(outputs, "hidden_states", None) or ()
    shape = (*ids.shape, config.hidden_size)
    if (
        last is None
        or len(layers) <= config.num_hidden_layers
        or any(states.shape != shape for states in (last, *layers))
    ):
        raise UserError(
            f"encoder.path: {path} does not give each token a state of {config.hidden_size} numbers in every "
            "layer; give a text encoder that does"
        )
    states: Tensor = last
    return states
