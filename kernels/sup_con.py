"""The supervised contrastive loss on Triton; the [M, M] logits never reach memory.

    x[i]    = z[i] / max(|z[i]|, 1e-12);  s[i, j] = scale * <x[i], x[j]>;  P(i): others of i's label
    lse[i]  = logsumexp_{j != i} s[i, j];  positive_lse[i] = logsumexp_{p in P(i)} s[i, p]
    loss[i] = lse[i] - mean_{p in P(i)} s[i, p]                 the mean outside the logarithm
    loss[i] = lse[i] - positive_lse[i] + log |P(i)|             inside;  0 where P(i) is empty
    dx[i]   = scale * sum_{j != i} (g[i, j] + g[j, i]) x[j]
    g[i, j] = w[i] (exp(s[i, j] - lse[i]) - [j in P(i)] h[i, j])
    h[i, j] = 1 / |P(i)|, or inside exp(s[i, j] - positive_lse[i])

Source: Khosla et al. 2020, arXiv:2004.11362, eq. 2 and 3. Derivation: docs/math/sup_con.md.

g + its transpose is symmetric, so a program that owns some rows ends with their whole gradient.
Positives are subtracted from a tile before it is rounded for the matrix unit: their number is not
bounded. Numbers of positives come from the sorted labels. Reading order: _tile.py, _sup_con.py,
_finish.py, _config.py, then here the launchers; cases and units as in nt_xent.py.

Extra memory: rows of z padded once, one float32 copy of them in the backward pass, and 8 * 64
bytes a row in the forward.
"""

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from sslops.kernels._architectures import family
from sslops.kernels._config import MAX_ROWS, cases, options
from sslops.kernels._finish import factors, finish, peak_of
from sslops.kernels._sup_con import sup_con_bwd_kernel, sup_con_fwd_kernel, sup_con_loss_kernel
from sslops.kernels._tile import matmul_precision, strips, unit_rows

LOSS_OPTIONS = {"ROWS": 32, "num_warps": 4}


def _positives(labels: Tensor) -> Tensor:
    """Number of other rows of each row's label, [M] float32."""
    ordered = labels.sort()[0]
    last = torch.searchsorted(ordered, labels, right=True)
    count = last - torch.searchsorted(ordered, labels) - 1
    return torch.where(labels < 0, 0, count).to(torch.float32)


def sup_con_fwd(
    z: Tensor,
    labels: Tensor,
    scale: Tensor | None,
    scale_factor: float,
    inside: bool,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward pass; arguments and results as of `sslops.reference.sup_con`."""
    M, D = z.shape
    labels, precision = labels.contiguous(), matmul_precision(z.dtype, z.device)
    loss, lse, positive_lse = (
        z.new_empty(n, dtype=torch.float32) for n in (M, M, M if inside else 0)
    )
    with torch.cuda.device_of(z):
        x, _ = unit_rows(z, normalize, precision)
        M_pad, D_pad = x.shape
        strip, G = strips(M)
        sums, positives = z.new_empty(2, G, M_pad, dtype=torch.float32).unbind()
        launches, limit = cases(scale, scale_factor, normalize and M <= MAX_ROWS, D, z.dtype)
        for online in launches:
            case = (online, z.dtype, precision, D_pad)
            sup_con_fwd_kernel[(G, G)](
                x, labels, scale, sums, positives,
                M, M_pad, D_pad, strip, strip, scale_factor, limit, inside,
                **options("fwd", case, family(z.device), narrow=True),
            )  # fmt: skip
        sup_con_loss_kernel[(triton.cdiv(M, LOSS_OPTIONS["ROWS"]),)](
            scale, sums, positives, _positives(labels), loss, lse, positive_lse,
            M, M_pad, G, scale_factor, limit, inside, **LOSS_OPTIONS,
        )  # fmt: skip
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
    """Launch the backward pass; arguments and results as of `sslops.reference.sup_con`."""
    M, D = z.shape
    labels, precision = labels.contiguous(), matmul_precision(z.dtype, z.device)
    with torch.cuda.device_of(z):
        x, norm = unit_rows(z, normalize, precision)
        M_pad, D_pad = x.shape
        count = _positives(labels)
        grad = torch.where(count > 0, grad_loss, 0.0)
        peak = peak_of(grad)
        vectors = factors(grad, peak, lse, None, M_pad)
        if inside:
            # -inf without a positive, and zero times infinity is NaN
            finite = torch.where(count > 0, positive_lse, 0.0)
            share = factors(grad, peak, finite, None, M_pad)
        else:
            share = vectors[0] / F.pad(count.clamp_min(1), (0, M_pad - M), value=1.0)
        total = z.new_empty(M_pad, D_pad, dtype=torch.float32)
        launches, limit = cases(scale, scale_factor, normalize and M <= MAX_ROWS, D, z.dtype)
        for online in launches:
            case = (online, z.dtype, precision, D_pad)
            chosen = options("heavy", case, family(z.device), narrow=True)
            grid = triton.cdiv(M, chosen["BLOCK_M"]), triton.cdiv(D_pad, chosen["BLOCK_D"])
            sup_con_bwd_kernel[grid](
                x, labels, scale, vectors, share, total,
                M, M_pad, D_pad, scale_factor, limit, inside, **chosen,
            )  # fmt: skip
        dz, dscale = finish(z, norm, total, scale, scale_factor, normalize, peak, z.dtype)
    return dz, 0.5 * dscale
