"""NT-Xent on Triton; the [M, M] logits never reach memory.

    x[i]    = z[i] / max(|z[i]|, 1e-12);  s[i, j] = scale * <x[i], x[j]>
    lse[i]  = logsumexp_{j != i} s[i, j]
    loss[i] = lse[i] - mean_{p in P(i)} s[i, p]
    dx[i]   = scale * (sum_{j != i} g[i, j] x[j] - sum_{p in P(i)} (w[i] + w[p]) / (V - 1) x[p])
    g[i, j] = w[i] exp(s[i, j] - lse[i]) + w[j] exp(s[i, j] - lse[j])

Source: Chen et al. 2020, arXiv:2002.05709, eq. 1; streaming logsumexp after Milakov & Gimelshein
2018, arXiv:1805.02867, alg. 3. Derivation: docs/math/nt_xent.md.

Reading order: _tile.py (helpers, normalisation), here the kernels, _config.py (choice of case,
tile sizes), then here the launchers.

s is symmetric: the forward pass visits only tiles on and above the diagonal. The rows are cut into
G <= STRIPS strips; a program owns one pair of strips A <= B and writes one number for each of
their rows: slot B of A's rows, slot A of B's. No atomics, a fixed order. g is symmetric, too: a
program of the backward pass that owns some rows and walks over all of them ends with their whole
gradient. Its weights are divided by max |w| (see _finish.py).

Logits are held in base 2. Where unit rows and scale * log2(e) <= limit bound them, all sums share
one fixed offset; elsewhere (ONLINE) every row and column has its own running maximum. With a
tensor scale both cases are launched, and the programs of one of them return at once.

Extra memory: rows of z padded once, one float32 copy of z's shape in the backward pass, and
4 * 64 bytes a row in the forward (three times that with statistics).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslops.kernels._architectures import family
from sslops.kernels._config import MAX_ROWS, cases, options
from sslops.kernels._finish import Positives, factors, finish, grad_max_of
from sslops.kernels._tile import (
    LN2,
    LOG2E,
    add_product,
    add_to_columns,
    add_to_rows,
    drop_self_and_padding,
    effective_scale,
    finite,
    load_lse,
    load_rows,
    load_weight,
    load_whole,
    matmul_precision,
    max_to_columns,
    merge_lse,
    merge_max,
    offset_terms,
    other_case,
    similarities,
    softmax_gradient,
    store_sum,
    strips,
    unit_rows,
)

LOSS_OPTIONS = {"ROWS": 32, "COLS": 64, "num_warps": 4}


@triton.jit(do_not_specialize=["M", "samples"])
def nt_xent_fwd_kernel(
    x_ptr,  # [M_pad, D_pad] unit rows
    scale_ptr,  # 0-d, or None for 1
    sums_ptr,  # [G, M_pad] float32, written: sums above the offset; ONLINE: their base-2 lse
    best_ptr,  # [2, G, M_pad] float32, written: largest positive and negative logit; or None
    M,
    M_pad,
    D_pad,
    samples,  # M / V: rows i and j are views of one sample where i % samples == j % samples
    strip,  # rows of a strip, a multiple of PAD
    scale_factor,
    limit,
    ONLINE: tl.constexpr,
    WHOLE: tl.constexpr,  # D_pad == BLOCK_K: a row block is loaded once
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns the tiles of one pair of strips, A <= B."""
    scale2 = effective_scale(scale_ptr, scale_factor) * LOG2E
    if other_case(scale2, limit, ONLINE):
        return
    STATS: tl.constexpr = best_ptr is not None

    # pid = B (B + 1) / 2 + A; exact in float32 as G <= 64, but for the root's last bit
    pid = tl.program_id(0)
    B = ((tl.sqrt(8.0 * pid + 1.0) - 1.0) * 0.5).to(tl.int32)
    B += ((B + 1) * (B + 2) // 2 <= pid).to(tl.int32)
    B -= (B * (B + 1) // 2 > pid).to(tl.int32)
    A = pid - B * (B + 1) // 2
    m0, n0 = A * strip, B * strip
    # int64: slots * rows passes 2**31 with the statistics' planes
    row_slot, col_slot = tl.cast(B, tl.int64) * M_pad, tl.cast(A, tl.int64) * M_pad
    neg_plane = tl.cast(tl.cdiv(M, strip), tl.int64) * M_pad

    for first_m in range(m0, tl.minimum(m0 + strip, M), BLOCK_M):
        offs_m = first_m + tl.arange(0, BLOCK_M)
        a = load_whole(x_ptr, first_m, D_pad, WHOLE, BLOCK_M, BLOCK_K)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        row_pos, row_neg = row_max, row_max
        for first_n in range(n0, tl.minimum(n0 + strip, M), BLOCK_N):
            offs_n = first_n + tl.arange(0, BLOCK_N)
            b = load_whole(x_ptr, first_n, D_pad, WHOLE, BLOCK_N, BLOCK_K)
            s = similarities(
                a, b, x_ptr, x_ptr, first_m, first_n, D_pad, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
            )
            s *= scale2
            s = drop_self_and_padding(s, first_m, first_n, M, BLOCK_M, BLOCK_N)

            e = offset_terms(s, scale2, ONLINE)
            row_max, row_sum = add_to_rows(row_max, row_sum, s, e)
            # of a pair A == B the sums of rows have everything
            store_mask = tl.full([BLOCK_N], 1, tl.int1) & (A < B)
            load_mask = store_mask & (first_m > m0)
            add_to_columns(sums_ptr + col_slot + offs_n, s, e, load_mask, store_mask)

            if STATS:
                same = (offs_m % samples)[:, None] == (offs_n % samples)[None, :]
                pos = tl.where(same, s, float("-inf"))
                neg = tl.where(same, float("-inf"), s)
                row_pos = tl.maximum(row_pos, tl.max(pos, axis=1))
                row_neg = tl.maximum(row_neg, tl.max(neg, axis=1))
                col_ptr = best_ptr + col_slot + offs_n
                max_to_columns(col_ptr, pos, load_mask, store_mask)
                max_to_columns(col_ptr + neg_plane, neg, load_mask, store_mask)
        if ONLINE:
            row_sum = finite(row_max) + tl.log2(row_sum)
        tl.store(sums_ptr + row_slot + offs_m, row_sum)
        if STATS:
            tl.store(best_ptr + row_slot + offs_m, row_pos)
            tl.store(best_ptr + neg_plane + row_slot + offs_m, row_neg)
        # the next row block's threads read the column numbers that other threads wrote
        tl.debug_barrier()


@triton.jit(do_not_specialize=["M", "samples", "num_views", "G"])
def nt_xent_loss_kernel(
    x_ptr,  # [M_pad, D_pad]
    scale_ptr,  # 0-d or None
    sums_ptr,  # [G, M_pad]
    best_ptr,  # [2, G, M_pad] or None
    loss_ptr,  # [M] float32, written
    lse_ptr,  # [M] float32, written
    hit_ptr,  # [M] bool, written; or None
    M,
    M_pad,
    D_pad,
    samples,
    num_views,
    G,
    scale_factor,
    limit,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """One program finishes ROWS rows: merges their slots, and computes their positives' logits."""
    scale = effective_scale(scale_ptr, scale_factor)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lse = merge_lse(sums_ptr, rows, M, M_pad, G, scale * LOG2E, limit) * LN2

    positive = tl.zeros([ROWS], tl.float32)
    for k in range(1, num_views):
        partners = rows + k * samples
        partners -= tl.where(partners >= M, M, 0)
        for first in range(0, D_pad, COLS):
            cols = first + tl.arange(0, COLS)
            a = load_rows(x_ptr, rows, cols, M, D_pad, D_pad, 1)
            b = load_rows(x_ptr, partners, cols, M, D_pad, D_pad, 1)
            positive += tl.sum(a * b, axis=1)
    tl.store(lse_ptr + rows, lse, mask=rows < M)
    tl.store(loss_ptr + rows, lse - scale * positive / (num_views - 1), mask=rows < M)
    if hit_ptr is not None:
        pos = merge_max(best_ptr, rows, M, M_pad, G)
        neg = merge_max(best_ptr + tl.cast(G, tl.int64) * M_pad, rows, M, M_pad, G)
        # a maximum skips NaN, the sum did not
        tl.store(hit_ptr + rows, (pos > neg) & (lse == lse), mask=rows < M)


@triton.jit(do_not_specialize=["M"])
def nt_xent_bwd_kernel(
    x_ptr,  # [M_pad, D_pad]
    scale_ptr,  # 0-d or None
    factors_ptr,  # [3, M_pad]
    sum_ptr,  # [M_pad, D_pad] float32, written: sum_j g[i, j] x[j] / grad_max
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
    offs_m = first_m + tl.arange(0, BLOCK_M)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    # |g| / grad_max <= 2, times 2**14: float16 would lose what is below 2**-24
    SHIFT: tl.constexpr = 14.0 if dtype == tl.float16 else 0.0
    UNSHIFT: tl.constexpr = 2.0**-14 if dtype == tl.float16 else 1.0
    w_m = load_weight(factors_ptr, offs_m, M_pad, ONLINE)
    lse_m = load_lse(factors_ptr, offs_m, M_pad, SHIFT, ONLINE)
    a = load_whole(x_ptr, first_m, D_pad, WHOLE, BLOCK_M, BLOCK_K)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first_n in range(0, M, BLOCK_N):
        offs_n = first_n + tl.arange(0, BLOCK_N)
        b = load_whole(x_ptr, first_n, D_pad, WHOLE, BLOCK_N, BLOCK_K)
        s = similarities(
            a, b, x_ptr, x_ptr, first_m, first_n, D_pad, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
        )
        s *= scale2
        s = drop_self_and_padding(s, first_m, first_n, M, BLOCK_M, BLOCK_N)
        w_n = load_weight(factors_ptr, offs_n, M_pad, ONLINE)
        lse_n = load_lse(factors_ptr, offs_n, M_pad, SHIFT, ONLINE)
        g = softmax_gradient(s, w_m, lse_m, w_n, lse_n, SHIFT)
        acc = add_product(acc, g, b, x_ptr, first_n, first_d, D_pad, BLOCK_N, BLOCK_D, PRECISION)

    store_sum(sum_ptr, acc * UNSHIFT, first_m, first_d, D_pad, BLOCK_M, BLOCK_D)


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
    with torch.cuda.device_of(z):
        x, norm = unit_rows(z, normalize, precision)
        M_pad, D_pad = x.shape
        grad_max = grad_max_of(grad_loss)
        vectors = factors(grad_loss, grad_max, lse, None, M_pad)
        total = z.new_empty(M_pad, D_pad, dtype=torch.float32)
        launches, limit = cases(scale, scale_factor, normalize, D, z.dtype)
        arch = family(z.device)
        for online in launches:
            chosen = options("bwd", (online, z.dtype, precision, D_pad), arch)
            grid = triton.cdiv(M, chosen["BLOCK_M"]), triton.cdiv(D_pad, chosen["BLOCK_D"])
            nt_xent_bwd_kernel[grid](
                x, scale, vectors, total, M, M_pad, D_pad, scale_factor, limit, **chosen
            )
        positives = Positives(x, M, vectors[0], None, num_views=num_views)
        dz, dscale = finish(
            z, norm, total, scale, scale_factor, normalize, grad_max, z.dtype, positives
        )
    return dz, 0.5 * dscale
