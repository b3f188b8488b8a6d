"""Each row's InfoNCE loss from checked arguments, and its statistics."""

from typing import NamedTuple

import torch
from torch import Tensor

from sslops._library import op
from sslops.ops import _info_nce_joint  # noqa: F401  registers the ops

# Multiplications of a product: below, one pass saves less than to check its guess costs.
JOINT_FROM = 1 << 22


class InfoNCEStats(NamedTuple):
    """Statistics that `info_nce(..., return_stats=True)` returns beside the loss, all detached.

    Attributes:
        loss: [M] float32 (float64 for float64 inputs), each query's loss before weights.
        lse: [M], log-sum-exp of each query's logits, its positive's among them.
        hit: [M] bool, whether the positive is above every negative.
        key_loss: [N], each key's loss if `symmetric`, else empty.
        key_lse: [N] or empty.
        key_hit: [N] bool or empty.
    """

    loss: Tensor
    lse: Tensor
    hit: Tensor
    key_loss: Tensor
    key_lse: Tensor
    key_hit: Tensor


def rows_of_info_nce(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    targets: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    scale: Tensor | None,
    factor: float,
    *,
    within: bool = False,
    symmetric: bool = False,
    normalize: bool,
    stats: bool,
    reduced: bool = False,
    shares: Tensor | None = None,
) -> tuple[Tensor, InfoNCEStats]:
    """The loss of each row from checked arguments, by the cheapest op that can give it.

    `reduced`: the rows will most likely be summed in proportion to `shares` [M], None for equal
    ones. It decides what the gradient costs on the CPU, never what it is.
    """
    args = (queries, keys, negatives, targets, query_ids, key_ids, scale, factor, within)
    trained = keys if negatives is None else negatives
    found: tuple[Tensor, ...] | None = None
    if torch.is_grad_enabled() and not symmetric:
        enough = queries.numel() * trained.shape[0] >= JOINT_FROM
        if trained.requires_grad and reduced and enough and queries.device.type == "cpu":
            weights = None if shares is None else shares.detach()
            found = op("info_nce_joint", queries)(*args[:6], weights, *args[6:], normalize, stats)
        elif queries.requires_grad and not trained.requires_grad:
            found = op("info_nce_single", queries)(*args, normalize, stats)
    if found is not None:
        loss, lse, hit, *_ = found
        none, no_hit = loss.new_empty(0), hit.new_empty(0)
        return loss, InfoNCEStats(loss.detach(), lse, hit, none, none, no_hit)
    loss, lse, key_loss, key_lse, hit, key_hit = op("info_nce_fwd", queries)(
        *args, symmetric, normalize, stats
    )
    found = InfoNCEStats(loss.detach(), lse, hit, key_loss.detach(), key_lse, key_hit)
    return (0.5 * (loss + key_loss) if symmetric else loss), found
