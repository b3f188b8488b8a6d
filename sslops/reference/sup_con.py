"""Supervised contrastive loss in plain PyTorch; formulas and derivation: docs/math/sup_con.md.

A chunk of rows at a time, in float32, or in float64 for float64 inputs.
"""

import torch
from torch import Tensor

from sslops.reference._rows import chunks, effective_scale, through_norm, unit_rows


def _pairs(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(itself, positive), [C, M] bool each."""
    itself = rows[:, None] == torch.arange(len(labels), device=labels.device)
    same = (labels[rows, None] == labels) & (labels[rows, None] >= 0)
    return itself, same & ~itself


def sup_con_fwd(
    z: Tensor,
    labels: Tensor,
    scale: Tensor | None,
    scale_factor: float,
    inside: bool,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Per-row loss and statistics of `sslops.sup_con`.

    Args:
        z: [M, D] floating.
        labels: [M] int64; a negative label matches nothing.
        scale: 0-d floating, or None for 1. The logits are multiplied by `scale * scale_factor`,
            the inverse temperature; where that is not positive every result is NaN.
        scale_factor: see `scale`.
        inside: the mean over the positives inside the logarithm.
        normalize: divide each row by max(its L2 norm, 1e-12) first.

    Returns:
        (loss [M], zero where a row has no positive; lse [M] over all other rows; positive_lse
        [M] over the positives if `inside`, else empty).
    """
    x, _ = unit_rows(z, normalize)
    factor = effective_scale(x, scale, scale_factor)
    M = len(x)
    loss, lse = x.new_empty(M), x.new_empty(M)
    positive_lse = x.new_empty(M if inside else 0)
    for rows in chunks(M, M, x.device):
        logits = x[rows] @ x.T * factor
        itself, positive = _pairs(rows, labels)
        logits.masked_fill_(itself, float("-inf"))
        lse[rows] = torch.logsumexp(logits, dim=1)
        count = positive.sum(dim=1)
        if inside:
            of_positives = torch.logsumexp(logits.masked_fill(~positive, float("-inf")), dim=1)
            positive_lse[rows] = of_positives
            each = lse[rows] - of_positives + count.to(x.dtype).log()
        else:
            each = lse[rows] - torch.where(positive, logits, 0.0).sum(dim=1) / count.clamp_min(1)
        loss[rows] = torch.where(count > 0, each, 0.0 * factor)
    return loss, lse, positive_lse


def sup_con_bwd(
    grad_loss: Tensor,
    z: Tensor,
    labels: Tensor,
    lse: Tensor,
    positive_lse: Tensor,
    scale: Tensor | None,
    scale_factor: float,
    inside: bool,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Gradient of `sup_con_fwd`'s loss: (dz [M, D] in z's dtype, dscale 0-d).

    Args:
        grad_loss: [M], the upstream gradient of each row's loss.
        z: [M, D], as in `sup_con_fwd`, like all arguments not listed here.
        labels: [M].
        lse: [M], as `sup_con_fwd` returned it.
        positive_lse: [M] or empty, likewise.
        scale: 0-d or None; `dscale` is the derivative with respect to `scale * scale_factor`.
        scale_factor: see `scale`.
        inside: see `sup_con_fwd`.
        normalize: see `sup_con_fwd`.
    """
    x, norm = unit_rows(z, normalize)
    factor = effective_scale(x, scale, scale_factor)
    M = len(x)
    dx = torch.zeros_like(x)
    for rows in chunks(M, M, x.device):
        logits = x[rows] @ x.T * factor
        itself, positive = _pairs(rows, labels)
        logits.masked_fill_(itself, float("-inf"))
        count = positive.sum(dim=1, keepdim=True)
        p = (logits - lse[rows, None]).exp()
        if inside:
            share = (logits - positive_lse[rows, None]).exp()
        else:
            share = 1.0 / count.clamp_min(1).to(x.dtype)  # not float32 where x is float64
        p -= torch.where(positive, share, 0.0)
        g = torch.where(count > 0, grad_loss[rows, None].to(x.dtype) * p, 0.0)
        dx[rows] += g @ x
        dx += g.T @ x[rows]
    dscale = 0.5 * (x * dx).sum()
    return through_norm(dx * factor, x, norm, normalize).to(z.dtype), dscale
