"""NT-Xent on Triton; the [M, M] logits never reach memory.

    x[i]    = z[i] / max(|z[i]|, 1e-12);  s[i, j] = scale * <x[i], x[j]>
    lse[i]  = logsumexp_{j != i} s[i, j]
    loss[i] = lse[i] - mean_{p in P(i)} s[i, p]
    dx[i]   = scale * (sum_{j != i} g[i, j] x[j] - sum_{p in P(i)} (w[i] + w[p]) / (V - 1) x[p])
    g[i, j] = w[i] exp(s[i, j] - lse[i]) + w[j] exp(s[i, j] - lse[j])

Source: Chen et al. 2020, arXiv:2002.05709, eq. 1; streaming logsumexp after Milakov & Gimelshein
2018, arXiv:1805.02867, alg. 3. Derivation: docs/math/nt_xent.md.

Reading order: _tile.py (helpers, normalisation), _nt_xent_fwd.py, _nt_xent_bwd.py, _config.py
(choice of case, tile sizes), then here the launchers. s is symmetric: the forward visits only
tiles on and above the diagonal. Logits are held in base 2. Where unit rows and scale * log2(e) <=
limit bound them, all sums share one fixed offset; elsewhere (ONLINE) every row and column keeps
its own maximum. With a tensor scale both are launched, and the device leaves one of them at once.

Extra memory: rows of z padded once, one float32 copy of z's shape in the backward pass, and
4 * 64 bytes a row in the forward (three times that with statistics).
"""

import torch
import triton
from torch import Tensor

from sslops.kernels._architectures import family
from sslops.kernels._config import MAX_ROWS, cases, options
from sslops.kernels._finish import factors, peak_of
from sslops.kernels._nt_xent_bwd import nt_xent_bwd_kernel, nt_xent_dz_kernel
from sslops.kernels._nt_xent_fwd import nt_xent_fwd_kernel, nt_xent_loss_kernel
from sslops.kernels._tile import matmul_precision, strips, unit_rows

LOSS_OPTIONS = {"ROWS": 32, "COLS": 64, "num_warps": 4}
DZ_OPTIONS = {"ROWS": 16, "COLS": 64, "num_warps": 4}


def nt_xent_fwd(
    z: Tensor,
    scale: Tensor | None,
    scale_factor: float,
    num_views: int,
    normalize: bool,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward pass; arguments and results as of `sslops.reference.nt_xent`.

    Products of float32 inputs are exact in float32, or in TF32 with inputs rounded to nearest
    where `torch.backends.cuda.matmul.fp32_precision` is "tf32". Both passes read that setting, so
    change it only between steps.
    """
    M, D = z.shape
    if M > MAX_ROWS:
        raise ValueError(f"nt_xent: z must have at most {MAX_ROWS} rows on CUDA, got {M}")
    precision = matmul_precision(z.dtype, z.device)
    loss, lse = (z.new_empty(M, dtype=torch.float32) for _ in range(2))
    hit = z.new_empty(M if stats else 0, dtype=torch.bool)
    with torch.cuda.device_of(z):
        x, _ = unit_rows(z, normalize, precision)
        M_pad, D_pad = x.shape
        strip, G = strips(M)
        sums = z.new_empty(G, M_pad, dtype=torch.float32)
        best = z.new_empty(2, G, M_pad, dtype=torch.float32) if stats else None
        launches, limit = cases(scale, scale_factor, normalize, D, z.dtype)
        samples, arch = M // num_views, family(z.device)
        for online in launches:
            nt_xent_fwd_kernel[(G * (G + 1) // 2,)](
                x, scale, sums, best,
                M, M_pad, D_pad, samples, strip, scale_factor, limit,
                **options("fwd", (online, z.dtype, precision, D_pad), arch, stats),
            )  # fmt: skip
        nt_xent_loss_kernel[(triton.cdiv(M, LOSS_OPTIONS["ROWS"]),)](
            x, scale, sums, best, loss, lse, hit if stats else None,
            M, M_pad, D_pad, samples, num_views, G, scale_factor, limit,
            **LOSS_OPTIONS,
        )  # fmt: skip
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
    """Launch the backward pass; arguments and results as of `sslops.reference.nt_xent`."""
    M, D = z.shape
    precision = matmul_precision(z.dtype, z.device)
    dz = z.new_empty(M, D)
    with torch.cuda.device_of(z):
        x, norm = unit_rows(z, normalize, precision)
        M_pad, D_pad = x.shape
        peak = peak_of(grad_loss)
        vectors = factors(grad_loss, peak, lse, None, M_pad)
        pull = z.new_empty(M_pad, D_pad, dtype=torch.float32)
        launches, limit = cases(scale, scale_factor, normalize, D, z.dtype)
        arch = family(z.device)
        for online in launches:
            chosen = options("bwd", (online, z.dtype, precision, D_pad), arch)
            grid = triton.cdiv(M, chosen["BLOCK_M"]), triton.cdiv(D_pad, chosen["BLOCK_D"])
            nt_xent_bwd_kernel[grid](
                x, scale, vectors, pull, M, M_pad, D_pad, scale_factor, limit, **chosen
            )
        programs = triton.cdiv(M, DZ_OPTIONS["ROWS"])
        dscale = z.new_empty(programs, dtype=torch.float32)
        nt_xent_dz_kernel[(programs,)](
            pull, x, vectors, norm, z, scale, peak, dz, dscale,
            M, D, D_pad, M // num_views, num_views, *z.stride(), scale_factor, normalize,
            **DZ_OPTIONS,
        )  # fmt: skip
    return dz, dscale.sum()
