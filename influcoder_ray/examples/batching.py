"""Batches by token budget: rows of like length together, so that little is padding."""

from collections.abc import Sequence


def token_batches(lengths: Sequence[int], tokens_per_batch: int, *, packed: bool = False) -> list[list[int]]:
    """Positions of rows, batch by batch, longest rows first.

    A batch's size stays within the budget: its tokens where rows are packed, else its rows times its
    longest row, padding included. A row above the budget goes alone. The result depends on the
    lengths alone, so the same rows always meet the same neighbours.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches: list[list[int]] = []
    size = 0
    for row in order:
        # Rows come longest first, so that a batch's first row is as long as its padding makes the others.
        grown = size + (lengths[row] if packed or not batches else lengths[batches[-1][0]])
        if batches and grown <= tokens_per_batch:
            batches[-1].append(row)
            size = grown
        else:
            batches.append([row])
            size = lengths[row]
    return batches
