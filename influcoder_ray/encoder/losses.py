"""What makes a block of predicted cosines agree with a block of influences."""

import torch
from torch import Tensor
from torch.nn import functional


def pearson_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """One minus Pearson's correlation over all pairs of a block (Influcoder, arXiv 2606.13668).

    Args:
        predicted, target: (Q, P) float32.
    """
    p = predicted.flatten() - predicted.mean()
    t = target.flatten() - target.mean()
    return 1 - functional.cosine_similarity(p, t, dim=0, eps=1e-8)


def row_pearson_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """One minus the mean over queries of Pearson's correlation over the pool examples of a block.

    What the correlation over all pairs can be had for, telling queries apart by their level, counts for
    nothing here.

    Args:
        predicted, target: (Q, P) float32.
    """
    p = predicted - predicted.mean(1, keepdim=True)
    t = target - target.mean(1, keepdim=True)
    return 1 - functional.cosine_similarity(p, t, dim=1, eps=1e-8).mean()


def listwise_loss(predicted: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Mean over queries of KL(softmax(target / temperature) || softmax(predicted / temperature)).

    Args:
        predicted, target: (Q, P) float32.
    """
    return functional.kl_div(
        torch.log_softmax(predicted / temperature, dim=1),
        torch.log_softmax(target / temperature, dim=1),
        log_target=True,
        reduction="batchmean",
    )


def distillation_loss(
    predicted: Tensor, target: Tensor, *, listwise_share: float, temperature: float
) -> Tensor:
    """The weighted sum of both losses; a share of one half is the paper's loss."""
    loss = (1 - listwise_share) * pearson_loss(predicted, target)
    if listwise_share:
        loss = loss + listwise_share * listwise_loss(predicted, target, temperature)
    return loss
