"""Whether one way to compute something stands for another: both are tried on the same numbers."""

import torch
from torch import Tensor

# Rounding to 16 bits in another place differs by less than this share, another function by far more.
_TOLERANCE = 1e-2


def probe(weight: Tensor) -> Tensor:
    """Two rows (2, I) for a module with a weight of I columns, in its type and on its device.

    They have another mean than zero and another size than one, so that norms of other kinds differ on them.
    """
    columns = weight.shape[-1]
    places = torch.arange(2 * columns, dtype=torch.float32, device=weight.device)
    return (3 * (places * 0.7).sin() + 1).view(2, columns).to(weight.dtype)


def alike(found: Tensor, expected: Tensor) -> bool:
    """Whether two results are the same but for rounding."""
    if found.shape != expected.shape:
        return False
    return bool((found - expected).norm() <= _TOLERANCE * expected.norm())
