"""Batches by token budget: rows of like length together, so that little is padding."""

from collections.abc import Sequence


def token_batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Positions of rows, batch by batch, longest rows first.

    A batch's rows times its longest row stay within the budget; a row above the budget goes alone.
    The result depends on the lengths alone, so the same rows always meet the same neighbours.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens_per_batch:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
