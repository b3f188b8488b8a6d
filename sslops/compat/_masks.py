"""Losses of pairs and of anchors: those that were chosen one by one store M x N numbers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops import info_nce
from sslops._join import without_autocast


def logits_of(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cosines over the temperature, in float32 (float64) under autocast too: [M, N]."""
    x, y = _unit_rows(queries, keys)
    with without_autocast(x):  # whose logits would have 8 bits
        return x @ y.T / temperature


def _unit_rows(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.promote_types(queries.dtype, keys.dtype)
    dtype = torch.promote_types(both, torch.float32)
    return F.normalize(queries.to(dtype), dim=1), F.normalize(keys.to(dtype), dim=1)


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
    # exactly 0 where the only positive is so near that nothing else is seen beside it
    logits = logits - logits.amax(dim=1, keepdim=True).detach()
    lse = torch.where(positive | negative, logits, nothing).logsumexp(1)
    count = positive.sum(dim=1)
    mean = torch.where(positive, logits, 0.0).sum(dim=1) / count.clamp_min(1)
    return torch.where(count > 0, lse - mean, 0.0)


def anchors_among(
    queries: Tensor,
    ids: Tensor,
    keys: Tensor,
    key_ids: Tensor,
    positive: Tensor,
    own: Tensor | None,
    temperature: float,
) -> Tensor:
    """Supervised contrastive loss of each query among the keys, 0 without a positive: [M].

    The log-sum-exp is that of InfoNCE; the positives come from a sum of keys for each label.

    Args:
        queries: [M, D].
        ids: [M], from 0.
        keys: [N, D].
        key_ids: [N], from 0.
        positive: [M, N] bool, equal ids but for the query itself.
        own: [M] which key is the query itself, or None.
        temperature: tau.
    """
    target, count = positive.to(torch.uint8).argmax(dim=1), positive.sum(dim=1)
    places = None if own is None else torch.arange(len(keys), device=keys.device)
    loss = info_nce(
        queries, keys, targets=target, query_ids=own, key_ids=places, temperature=temperature,
        reduction="none",
    )  # fmt: skip
    assert isinstance(loss, Tensor)
    x, y = (F.normalize(each.to(loss.dtype), dim=1) for each in (queries, keys))
    labels = int(torch.stack([ids.max(), key_ids.max()]).max()) + 1
    together = y.new_zeros(labels, y.shape[1]).index_add(0, key_ids, y)[ids]
    if own is not None:
        together = together - y[own]
    mean = (x * together).sum(dim=1) / count.clamp_min(1)
    own_logit = (x * y[target]).sum(dim=1)
    return torch.where(count > 0, loss + (own_logit - mean) / temperature, 0.0)


@torch.no_grad()
def without_loss(
    losses: Tensor, queries: Tensor, keys: Tensor, positive: Tensor, own: Tensor | None, tau: float
) -> Tensor:
    """Which rows have a loss of exactly 0 in plain PyTorch: [M] bool.

    That of the kernels is off by the rounding of a logit, up or down, and a mean over the losses
    that are not 0 must not count such rows. Only one positive alone can come to 0. Rows of
    `losses` that may are computed once more, 1024 at a time.
    """
    found = torch.zeros_like(losses, dtype=torch.bool)
    may = (losses < 1e-3) & (positive.sum(dim=1) == 1)
    rows = torch.arange(len(losses), device=losses.device)
    if not torch.compiler.is_compiling():  # where shapes must not depend on values, all rows
        rows = rows[may]
    x, y = _unit_rows(queries, keys)
    for some in torch.split(rows, 1024):
        with without_autocast(x):
            logits = x[some] @ y.T / tau
        seen = torch.ones_like(logits, dtype=torch.bool)
        if own is not None:
            seen.scatter_(1, own[some, None], False)
        found[some] = anchor_losses(logits, positive[some], seen & ~positive[some]) <= 0
    return found & may
