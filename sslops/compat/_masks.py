"""Losses of pairs that were chosen one by one, in plain PyTorch: they store M x N numbers."""

import torch
import torch.nn.functional as F
from torch import Tensor


def logits_of(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cosines over the temperature: [M, N]."""
    dtype = torch.promote_types(queries.dtype, torch.float32)
    x, y = F.normalize(queries.to(dtype), dim=1), F.normalize(keys.to(dtype), dim=1)
    return x @ y.T / temperature


def pair_losses(logits: Tensor, anchors: Tensor, positives: Tensor, times: Tensor) -> Tensor:
    """-log(e^s / (e^s + sum over the anchor's negatives)) of each positive pair: [P].

    Args:
        logits: [M, N].
        anchors: [P] rows.
        positives: [P] columns.
        times: [M, N], how often a pair counts as a negative.
    """
    # not -inf: a row without negatives would have the gradient NaN
    nothing = torch.finfo(logits.dtype).min
    negative = torch.where(times > 0, logits + times.to(logits.dtype).log(), nothing).logsumexp(1)
    return F.softplus(negative[anchors] - logits[anchors, positives], threshold=40)


def anchor_losses(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Supervised contrastive loss of each row, 0 without a positive: [M].

    Args:
        logits: [M, N].
        positive: [M, N] bool.
        negative: [M, N] bool.
    """
    nothing = torch.finfo(logits.dtype).min
    lse = torch.where(positive | negative, logits, nothing).logsumexp(1)
    count = positive.sum(dim=1)
    mean = torch.where(positive, logits, 0.0).sum(dim=1) / count.clamp_min(1)
    return torch.where(count > 0, lse - mean, 0.0)
