"""NT-Xent in plain PyTorch, a chunk of rows at a time so that memory stays bounded.

Formulas and derivation: docs/math/nt_xent.md. Everything is computed in float32, or in float64
for float64 inputs, whatever the input's dtype.
"""

import torch
from torch import Tensor

from sslops.reference._rows import chunks, effective_scale, through_norm, unit_rows


def nt_xent_fwd(
    z: Tensor,
    scale: Tensor | None,
    scale_factor: float,
    num_views: int,
    normalize: bool,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Per-row loss and statistics of `sslops.nt_xent`.

    Args:
        z: [M, D] floating; row v * B + b is view v of sample b, B = M / num_views.
        scale: 0-d floating, or None for 1. The logits are multiplied by `scale * scale_factor`,
            the inverse temperature; where that is not positive every result is NaN.
        scale_factor: see `scale`.
        num_views: V >= 2, divides M.
        normalize: divide each row by max(its L2 norm, 1e-12) first.
        stats: whether `hit` is wanted.

    Returns:
        (loss [M], lse [M], hit [M] bool, or [0] without `stats`).
    """
    x, _ = unit_rows(z, normalize)
    factor = effective_scale(x, scale, scale_factor)
    M = x.shape[0]
    loss, lse = x.new_empty(M), x.new_empty(M)
    hit = torch.empty(M if stats else 0, dtype=torch.bool, device=x.device)
    for rows in chunks(M, M, x.device):
        logits = x[rows] @ x.T * factor  # [C, M]
        logits.masked_fill_(_is_self(rows, M), float("-inf"))
        positive = _is_positive(rows, M, num_views)  # [C, M]
        lse[rows] = torch.logsumexp(logits, dim=1)
        mean_positive = torch.where(positive, logits, 0.0).sum(dim=1) / (num_views - 1)
        loss[rows] = lse[rows] - mean_positive
        if stats:
            best_positive = logits.masked_fill(~positive, float("-inf")).amax(dim=1)
            best_negative = logits.masked_fill(positive, float("-inf")).amax(dim=1)
            hit[rows] = best_positive > best_negative
    return loss, lse, hit


def nt_xent_bwd(
    grad_loss: Tensor,
    z: Tensor,
    lse: Tensor,
    scale: Tensor | None,
    scale_factor: float,
    num_views: int,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Gradient of `nt_xent_fwd`'s loss: (dz [M, D] in z's dtype, dscale 0-d).

    Args:
        grad_loss: [M], the upstream gradient of each row's loss.
        z: [M, D], as in `nt_xent_fwd`, like the four arguments below.
        lse: [M], as `nt_xent_fwd` returned it.
        scale: 0-d or None; `dscale` is the derivative with respect to `scale * scale_factor`.
        scale_factor: see `scale`.
        num_views: V.
        normalize: whether the rows are divided by their norms.
    """
    x, norm = unit_rows(z, normalize)
    factor = effective_scale(x, scale, scale_factor)
    M = x.shape[0]
    w = grad_loss.to(x.dtype)
    dx = torch.empty_like(x)
    for rows in chunks(M, M, x.device):
        logits = x[rows] @ x.T * factor
        # both roles of a pair: i asks j (row softmax) and j asks i (its own row softmax)
        p = w[rows, None] * (logits - lse[rows, None]).exp() + w * (logits - lse).exp()
        p.masked_fill_(_is_self(rows, M), 0.0)
        pull = (w[rows, None] + w) / (num_views - 1)
        p -= torch.where(_is_positive(rows, M, num_views), pull, 0.0)
        dx[rows] = p @ x * factor
    dscale = 0.5 * (x * dx).sum() / factor
    return through_norm(dx, x, norm, normalize).to(z.dtype), dscale


def _is_self(rows: Tensor, M: int) -> Tensor:
    return rows[:, None] == torch.arange(M, device=rows.device)


def _is_positive(rows: Tensor, M: int, num_views: int) -> Tensor:
    sample = torch.arange(M, device=rows.device) % (M // num_views)
    return (sample[rows, None] == sample) & ~_is_self(rows, M)
