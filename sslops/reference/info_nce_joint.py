"""InfoNCE whose gradient is computed with the loss, in plain PyTorch; see info_nce."""

import torch
from torch import Tensor

from sslops.reference.info_nce import info_nce_bwd, info_nce_fwd


def info_nce_joint(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    targets: Tensor | None,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    weights: Tensor | None,
    scale: Tensor | None,
    scale_factor: float,
    within: bool,
    columns: bool,
    normalize: bool,
    stats: bool,
) -> tuple[Tensor, ...]:
    """Losses and the gradients of their weighted sum, all sides trained.

    Args are those of `info_nce_fwd`, and:
        weights: [M] of the dtype of the loss, None for 1; with columns also of the keys' losses.

    Returns:
        (loss [M], lse [M], key_loss [N] or empty, key_lse, hit [M] bool or empty, key_hit,
        dqueries [M, D], dkeys [N, D], dnegatives [K, D] or empty, dscale 0-d): derivatives of
        sum(weights * loss) (+ sum(weights * key_loss)), in the dtype of the loss.
    """
    options = (targets, query_ids, key_ids)
    last = (scale, scale_factor, within)
    statistics = info_nce_fwd(queries, keys, negatives, *options, *last, columns, normalize, stats)
    loss, lse, key_loss, key_lse, *_ = statistics
    w = torch.ones_like(loss) if weights is None else weights
    third = None if negatives is None else negatives.to(loss.dtype)
    rows = (queries.to(loss.dtype), keys.to(loss.dtype), third)
    gradients = info_nce_bwd(
        w, w if columns else None, *rows, *options, loss, lse, key_loss, key_lse, *last, normalize,
        [True] * 3,
    )  # fmt: skip
    return *statistics, *gradients
