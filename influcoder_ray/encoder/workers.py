"""The workers of a training run, by torch.distributed where there are several."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, distributed


class Workers:
    """This process's rank among the workers of a run; one worker needs no process group."""

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.size = distributed.get_world_size() if together else 1
        self.rank = distributed.get_rank() if together else 0

    def gather(self, mine: Tensor, owners: np.ndarray) -> Tensor:
        """Rows of all workers in the order of `owners`, (B, n); gradients flow to this worker's own.

        Args:
            mine: this worker's rows, in order.
            owners: (B,) the rank that each row belongs to.
        """
        if self.size == 1:
            return mine
        counts = np.bincount(owners, minlength=self.size)
        padded = mine.new_zeros(int(counts.max()), mine.shape[1])
        padded[: len(mine)] = mine.detach()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        rows = [part[:count] for part, count in zip(parts, counts, strict=True)]
        rows[self.rank] = mine
        # Stable: rows of one owner keep their order, as they have in `mine`.
        place = torch.from_numpy(np.argsort(np.argsort(owners, kind="stable"), kind="stable"))
        return torch.cat(rows)[place.to(mine.device)]

    def sum(self, tensor: Tensor) -> None:
        """Add up a tensor over all workers, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add up each parameter's gradient over all workers, in place.

        A parameter without one gets zeros, with one worker too: an optimizer treats zeros and none
        differently, and the number of workers must not show.
        """
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self.sum(parameter.grad)
