"""How the examples of a batch lie in the model's input: packed into one row, or one a row with padding.

Packed, examples follow each other without a gap, positions begin anew with each, and attention is kept
inside each (see `attention`). Padded, each has a row of its own, filled up to the longest on the right,
where causal attention never looks and no loss falls. Between the two, packed examples are filled up to few
different lengths: a device that takes a while to start each operation is better off with a little padding
than with an operation for every length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torch import Tensor

from influcoder_ray.examples.tokens import Tokens

_MOST_RUNS = 8
# The output head sees as many positions at a time: what is left over of a product of few rows by the whole
# vocabulary, BLAS adds up one after the other, at a hundred times the rounding error.
HEAD_ROWS = 8


@dataclass(frozen=True)
class Run:
    """Examples that follow each other at one length: `count` of them, `length` positions each."""

    count: int
    length: int


@dataclass(frozen=True)
class Layout:
    """A batch of N examples as one input of the model.

    Attributes:
        ids: (rows, T) token ids.
        positions: (rows, T) of each token in its example; None where each row begins at 0.
        labelled: positions, counted through all rows, whose logits predict a token that carries loss; some
            that do not fill up the last of `HEAD_ROWS`.
        targets: the token's id for each of those that do.
        counts: (N,) labelled positions of each example.
        runs: every position of the input, row after row, belongs to one example; these are the
            examples' lengths in order, padding included.
    """

    ids: Tensor
    positions: Tensor | None
    labelled: Tensor
    targets: Tensor
    counts: Tensor
    runs: tuple[Run, ...]

    @property
    def examples(self) -> int:
        """N."""
        return sum(run.count for run in self.runs)

    @property
    def size(self) -> int:
        """Positions of the input, padding included."""
        return self.ids.numel()

    @property
    def starts(self) -> Tensor:
        """Int32 (N + 1,): where each example begins in all positions, and where the last one ends."""
        lengths = [run.length for run in self.runs for _ in range(run.count)]
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(self.ids.device)


def lay_out(
    tokens: Sequence[Tokens], *, packed: bool, device: torch.device, most_runs: int | None = None
) -> Layout:
    """The input of a batch of examples (N,), each with a labelled token.

    Args:
        most_runs: of packed examples, into how many lengths at most; any number if None.
    """
    lengths = [len(t.ids) for t in tokens]
    places = _filled(lengths, most_runs) if packed else [max(lengths)] * len(tokens)
    ids = torch.zeros(sum(places), dtype=torch.long)
    labelled: list[Tensor] = []
    start = 0
    for t, place in zip(tokens, places, strict=True):
        stop = start + len(t.ids)
        ids[start:stop] = torch.tensor(t.ids)
        # The logits that predict token i stand at position i - 1.
        labelled.append(torch.arange(start + t.labelled_from - 1, stop - 1))
        start += place
    predicting = torch.cat(labelled)
    filling = torch.zeros(-len(predicting) % HEAD_ROWS, dtype=torch.long)
    rows = 1 if packed else len(tokens)
    positions = torch.cat([torch.arange(n) for n in places])[None].to(device) if packed else None
    return Layout(
        ids=ids.view(rows, -1).to(device),
        positions=positions,
        labelled=torch.cat([predicting, filling]).to(device),
        targets=ids[predicting + 1].to(device),
        counts=torch.tensor([t.labelled for t in tokens]).to(device),
        runs=tuple(Run(len(list(group)), length) for length, group in groupby(places)),
    )


def most_runs_on(device: torch.device) -> int | None:
    """How many runs suit a device: on a GPU each is one more operation for every module."""
    return None if device.type == "cpu" else _MOST_RUNS


def _filled(lengths: Sequence[int], most_runs: int | None) -> list[int]:
    """What packed examples take: their lengths, or, neighbours in equal groups, those of the longest."""
    if most_runs is None or len({*lengths}) <= most_runs:
        return list(lengths)
    size = -(-len(lengths) // most_runs)
    return [max(lengths[row - row % size : row - row % size + size]) for row in range(len(lengths))]
