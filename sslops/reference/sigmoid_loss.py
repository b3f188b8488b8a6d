"""Pairwise sigmoid loss in plain PyTorch; formulas and derivation: docs/math/sigmoid_loss.md.

A chunk of rows at a time, in float32, or in float64 for float64 inputs.
"""

import torch
from torch import Tensor

from sslops.reference._rows import (
    chunks,
    effective_scale,
    left_out,
    softplus,
    through_norm,
    unit_rows,
)


def sigmoid_loss_fwd(
    queries: Tensor,
    keys: Tensor,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    scale: Tensor | None,
    scale_factor: float,
    bias: Tensor | None,
    bias_value: float,
    normalize: bool,
    grads: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum over all pairs, and its gradient in the same pass.

    Args:
        queries: [M, D] floating.
        keys: [N, D], same dtype, N >= M; key i is query i's positive.
        query_ids: [M] int64 or None.
        key_ids: [N] int64 or None; a negative pair of equal ids >= 0 is left out.
        scale: 0-d floating, or None for 1; cosines are multiplied by `scale * scale_factor`.
            Where that is not positive every result is NaN.
        scale_factor: see `scale`.
        bias: 0-d floating, or None for `bias_value`; added to the scaled cosines.
        bias_value: see `bias`.
        normalize: divide queries and keys by max(their L2 norm, 1e-12) first.
        grads: whether the gradients are wanted.

    Returns:
        (loss 0-d, dqueries [M, D], dkeys [N, D], dscale 0-d for `scale * scale_factor`, dbias
        0-d), all in float32 or float64; the gradients are empty without `grads`.
    """
    x, x_norm = unit_rows(queries, normalize)
    y, y_norm = unit_rows(keys, normalize)
    factor = effective_scale(x, scale, scale_factor)
    shift = x.new_full((), bias_value) if bias is None else bias.to(x.dtype)
    columns = torch.arange(len(y), device=x.device)
    total, dbias = x.new_zeros(()), x.new_zeros(())
    dx, dy = torch.zeros_like(x), torch.zeros_like(y)
    for rows in chunks(len(x), len(y), x.device):
        logits = x[rows] @ y.T * factor + shift
        positive = rows[:, None] == columns
        out = left_out(rows, query_ids, key_ids, same_id_only=False)
        signed = torch.where(positive, -logits, logits)
        if out is not None:
            signed.masked_fill_(out & ~positive, float("-inf"))
        total += softplus(signed).sum()
        if grads:
            g = torch.where(positive, -signed.sigmoid(), signed.sigmoid())
            dx[rows] = g @ y
            dy += g.T @ x[rows]
            dbias += g.sum()
    if not grads:
        empty = x.new_empty(0)
        return total, empty, empty.clone(), empty.clone(), empty.clone()
    dscale = (x * dx).sum()
    return (
        total,
        through_norm(dx * factor, x, x_norm, normalize),
        through_norm(dy * factor, y, y_norm, normalize),
        dscale,
        dbias,
    )


def sigmoid_loss_bwd(
    grad_loss: Tensor,
    queries: Tensor,
    keys: Tensor,
    dqueries: Tensor,
    dkeys: Tensor,
    dscale: Tensor,
    dbias: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `sigmoid_loss_fwd` found times the upstream gradient, 0-d, in the inputs' dtypes."""
    w = grad_loss.to(dqueries.dtype)
    return (w * dqueries).to(queries.dtype), (w * dkeys).to(keys.dtype), w * dscale, w * dbias
