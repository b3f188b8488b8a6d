"""Backward kernels of NT-Xent: tiles, then dz; formulas in nt_xent.py.

g is symmetric, so a program that owns some rows and walks over all of them ends with their whole
gradient: no atomics. |w| is divided by its maximum (`peak`) and multiplied back at the very end,
so a loss scaler's 65536 cannot overflow float16, nor 1 / M vanish in it.
"""

import triton
import triton.language as tl

from sslops.kernels._tile import (
    EPS,
    LOG2E,
    SPLIT,
    drop_self_and_padding,
    effective_scale,
    load_rows,
    load_tile,
    other_case,
    round_tf32,
    similarities,
)


@triton.jit(do_not_specialize=["M"])
def nt_xent_bwd_kernel(
    x_ptr,  # [M_pad, D_pad]
    scale_ptr,  # 0-d or None
    factors_ptr,  # [3, M_pad]
    pull_ptr,  # [M_pad, D_pad] float32, written: sum_j g[i, j] x[j] / peak
    M,
    M_pad,
    D_pad,
    scale_factor,
    limit,
    ONLINE: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns BLOCK_M rows and BLOCK_D of their features, and walks over all rows."""
    scale2 = effective_scale(scale_ptr, scale_factor) * LOG2E
    if other_case(scale2, limit, ONLINE):
        return
    first_m, first_d = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_D
    offs_m, offs_d = first_m + tl.arange(0, BLOCK_M), first_d + tl.arange(0, BLOCK_D)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    # |g| / peak <= 2 is lifted to 2**15: without it float16 loses what is below 2**-24
    LIFT: tl.constexpr = 14.0 if dtype == tl.float16 else 0.0
    UNLIFT: tl.constexpr = 2.0**-14 if dtype == tl.float16 else 1.0
    factors_ptr += 0 if ONLINE else 2 * tl.cast(M_pad, tl.int64)
    w_m = tl.load(factors_ptr + offs_m)
    if ONLINE:
        lse_m = tl.load(factors_ptr + M_pad + offs_m) - LIFT
    if WHOLE:
        a = load_tile(x_ptr, first_m, 0, D_pad, BLOCK_M, BLOCK_K)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first_n in range(0, M, BLOCK_N):
        offs_n = first_n + tl.arange(0, BLOCK_N)
        if WHOLE:
            b = load_tile(x_ptr, first_n, 0, D_pad, BLOCK_N, BLOCK_K)
            s = tl.dot(a, tl.trans(b), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        else:
            s = similarities(
                x_ptr, x_ptr, first_m, first_n, D_pad, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
            )
        s *= scale2
        meets_diagonal = (first_n < first_m + BLOCK_M) & (first_m < first_n + BLOCK_N)
        if meets_diagonal | (first_n + BLOCK_N > M):
            s = drop_self_and_padding(s, offs_m, offs_n, M)
        w_n = tl.load(factors_ptr + offs_n)
        if ONLINE:
            lse_n = tl.load(factors_ptr + M_pad + offs_n) - LIFT
            g = w_m[:, None] * tl.exp2(s - lse_m[:, None])
            g += w_n[None, :] * tl.exp2(s - lse_n[None, :])
        else:
            g = tl.exp2(s - (SPLIT - LIFT)) * (w_m[:, None] + w_n[None, :])
        if PRECISION == "tf32":
            g = round_tf32(g)
        if not WHOLE:
            b = load_tile(x_ptr, first_n, first_d, D_pad, BLOCK_N, BLOCK_D, BOUNDED=True)
        acc = tl.dot(g.to(dtype), b, acc, input_precision=PRECISION)

    ptrs = pull_ptr + offs_m.to(tl.int64)[:, None] * D_pad + offs_d[None, :]
    tl.store(ptrs, acc * UNLIFT, mask=offs_d[None, :] < D_pad)


@triton.jit
def _row_gradient(
    pull_ptr, x_ptr, w_ptr, rows, cols, M, D_pad, samples, num_views, ROWS: tl.constexpr
):
    """Gradient of x over (scale * peak): the tiles' sum less the positives: [ROWS, COLS]."""
    dx = load_rows(pull_ptr, rows, cols, M, D_pad, D_pad, 1)
    w = tl.load(w_ptr + rows)
    for k in range(1, num_views):
        partners = rows + k * samples
        partners -= tl.where(partners >= M, M, 0)
        both = (w + tl.load(w_ptr + partners)) / (num_views - 1)
        dx -= both[:, None] * load_rows(x_ptr, partners, cols, M, D_pad, D_pad, 1)
    return dx


@triton.jit(do_not_specialize=["M", "D", "samples", "num_views"])
def nt_xent_dz_kernel(
    pull_ptr,  # [M_pad, D_pad] float32
    x_ptr,  # [M_pad, D_pad]
    factors_ptr,  # [3, M_pad], of which w / peak is read
    norm_ptr,  # [M_pad] float32
    z_ptr,  # [M, D], any strides
    scale_ptr,  # 0-d or None
    peak_ptr,  # 0-d float32
    dz_ptr,  # [M, D] contiguous, written
    dscale_ptr,  # [programs] float32, written: this program's share
    M,
    D,
    D_pad,
    samples,
    num_views,
    stride_zm,
    stride_zd,
    scale_factor,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """One program turns ROWS rows of sums into dz, through the normalisation."""
    scale = effective_scale(scale_ptr, scale_factor)
    peak = tl.load(peak_ptr)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    norm = tl.load(norm_ptr + rows)
    length = tl.maximum(norm, EPS)[:, None]
    inside = tl.zeros([ROWS], tl.float32)  # <dx, x> / (scale * peak)
    for first in range(0, D, COLS):
        cols = first + tl.arange(0, COLS)
        dx = _row_gradient(
            pull_ptr, x_ptr, factors_ptr, rows, cols, M, D_pad, samples, num_views, ROWS
        )
        # z, not the rounded x: the projection of a 16-bit row would be off by its length
        x = load_rows(z_ptr, rows, cols, M, D, stride_zm, stride_zd)
        inside += tl.sum(dx * tl.div_rn(x, length), axis=1)
    share = tl.sum(tl.where(rows < M, inside, 0.0), axis=0) * 0.5 * peak
    tl.store(dscale_ptr + tl.program_id(0), share)

    inside = tl.where(norm < EPS, 0.0, inside)
    for first in range(0, D, COLS):
        cols = first + tl.arange(0, COLS)
        dx = _row_gradient(
            pull_ptr, x_ptr, factors_ptr, rows, cols, M, D_pad, samples, num_views, ROWS
        )
        if NORMALIZE:
            x = load_rows(z_ptr, rows, cols, M, D, stride_zm, stride_zd)
            dx = tl.div_rn(dx - inside[:, None] * tl.div_rn(x, length), length)
        ptrs = dz_ptr + rows.to(tl.int64)[:, None] * D + cols[None, :]
        mask = (rows < M)[:, None] & (cols < D)[None, :]
        tl.store(ptrs, (dx * (scale * peak)).to(dz_ptr.dtype.element_ty), mask=mask)
