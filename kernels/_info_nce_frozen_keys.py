"""One pass of InfoNCE over negatives that are not trained; formulas in info_nce.py.

dqueries is an attention output: a program owns some rows and one split of the negatives, and
holds a running maximum, the sum above it and the sum of negatives in the same weights. A second
kernel merges the splits. Source: Dao et al. 2022, arXiv:2205.14135, alg. 1; splits over the keys as
in flash-decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html
"""

import triton
import triton.language as tl

from sslops.kernels._loss import exceeds_best, one_minus_exp, positive_logit, softplus
from sslops.kernels._tile import (
    EPS,
    LN2,
    LOG2E,
    add_product,
    drop_pairs,
    effective_scale,
    finite,
    load_or,
    load_partners,
    load_rows,
    load_tile,
    load_whole,
    round_tf32,
    store_sum,
)


@triton.jit
def _load_negatives(
    y_ptr,
    first_row,
    first_col,
    N,
    D,
    stride_yn,
    dtype: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    EVEN: tl.constexpr,  # D is a multiple of COLS
    PRECISION: tl.constexpr,
):
    """Tile of unpadded negatives, zero outside, rounded to dtype and PRECISION: [ROWS, COLS]."""
    rows, cols = tl.arange(0, ROWS), tl.arange(0, COLS)
    # int64: row * stride passes 2**31 for a queue of 2**24 x 128
    ptr = y_ptr + tl.cast(first_row, tl.int64) * stride_yn + first_col
    mask = (first_row + rows < N)[:, None]
    if not EVEN:
        mask &= (first_col + cols < D)[None, :]
    b = tl.load(ptr + rows[:, None] * stride_yn + cols[None, :], mask=mask, other=0.0).to(dtype)
    if PRECISION == "tf32":
        b = round_tf32(b)
    return b


@triton.jit(do_not_specialize=["M", "N", "split"])
def info_nce_frozen_keys_kernel(
    x_ptr,  # [M_pad, D_pad]
    y_ptr,  # [N, D], rows stride_yn apart
    scale_ptr,  # 0-d or None
    targets_ptr,  # [M] or None
    row_ids_ptr,  # [M] or None
    col_ids_ptr,  # [N] or None
    max_ptr,  # [S, M_pad] float32, written: largest logit, base 2
    sum_ptr,  # [S, M_pad] float32, written: sum above it
    acc_ptr,  # [S, M_pad, D_pad] float32, written: the same sum of rows y
    positive_ptr,  # [M_pad] float32, written: logit of the positive, as the tile has it; or None
    M,
    N,
    D,
    M_pad,
    D_pad,
    stride_yn,
    split,  # columns of a split, a multiple of BLOCK_N
    scale_factor,
    KEYS_ARE_NEGATIVES: tl.constexpr,
    SAME_ID_ONLY: tl.constexpr,
    EVEN: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns BLOCK_M rows, BLOCK_D of their features and one split of the columns."""
    scale2 = effective_scale(scale_ptr, scale_factor) * LOG2E
    MASK_ALL: tl.constexpr = row_ids_ptr is not None or targets_ptr is not None
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    # p <= 1, times 2**14: float16 would lose what is below 2**-24
    SHIFT: tl.constexpr = 14.0 if dtype == tl.float16 else 0.0
    UNSHIFT: tl.constexpr = 2.0**-14 if dtype == tl.float16 else 1.0
    first_m, first_d = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_D
    offs_m = first_m + tl.arange(0, BLOCK_M)
    target_m = load_or(targets_ptr, offs_m, M, -1).to(tl.int32)
    id_m = load_or(row_ids_ptr, offs_m, M, -1)
    a = load_whole(x_ptr, first_m, D_pad, WHOLE, BLOCK_M, BLOCK_K)

    row_sum = tl.zeros([BLOCK_M], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    n0 = tl.program_id(2) * split
    for first_n in range(n0, tl.minimum(n0 + split, N), BLOCK_N):
        offs_n = first_n + tl.arange(0, BLOCK_N)
        if WHOLE:
            b = _load_negatives(
                y_ptr, first_n, 0, N, D, stride_yn, dtype, BLOCK_N, BLOCK_K, EVEN, PRECISION
            )
            s = tl.dot(a, tl.trans(b), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        else:
            s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            for k in range(0, D_pad, BLOCK_K):
                part = load_tile(x_ptr, first_m, k, D_pad, BLOCK_M, BLOCK_K)
                b = _load_negatives(
                    y_ptr, first_n, k, N, D, stride_yn, dtype, BLOCK_N, BLOCK_K, EVEN, PRECISION
                )
                s = tl.dot(part, tl.trans(b), s, input_precision=PRECISION)
        s *= scale2
        if positive_ptr is not None:
            positive = tl.where(target_m[:, None] == offs_n[None, :], s, 0.0)
            in_tile = (target_m >= first_n) & (target_m < first_n + BLOCK_N)
            tl.store(positive_ptr + offs_m, tl.sum(positive, axis=1), mask=in_tile)
        s = drop_pairs(
            s, first_m, first_n, target_m, None, id_m, col_ids_ptr, M, N,
            KEYS_ARE_NEGATIVES, SAME_ID_ONLY, MASK_ALL, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        new_max = tl.maximum(row_max, tl.max(s, axis=1))
        base = finite(new_max)
        rescale = tl.exp2(row_max - base)
        p = tl.exp2(s - (base - SHIFT)[:, None])
        row_sum = row_sum * rescale + tl.sum(p, axis=1)
        row_max = new_max
        if not WHOLE:
            b = _load_negatives(
                y_ptr, first_n, first_d, N, D, stride_yn, dtype, BLOCK_N, BLOCK_D, EVEN, PRECISION
            )
        acc = add_product(
            acc * rescale[:, None], p, b, y_ptr, first_n, first_d, D, BLOCK_N, BLOCK_D, PRECISION
        )

    slot = tl.program_id(2).to(tl.int64) * M_pad
    tl.store(max_ptr + slot + offs_m, row_max)
    tl.store(sum_ptr + slot + offs_m, row_sum * UNSHIFT)
    store_sum(acc_ptr, acc * UNSHIFT, slot + first_m, first_d, D_pad, BLOCK_M, BLOCK_D)


@triton.jit(do_not_specialize=["M", "N", "D", "S"])
def info_nce_combine_kernel(
    max_ptr,  # [S, M_pad]
    sum_ptr,  # [S, M_pad]
    acc_ptr,  # [S, M_pad, D_pad]
    positive_ptr,  # [M_pad] or None
    x_ptr,  # [M_pad, D_pad]
    k_ptr,  # [N_pad, D_pad] unit rows of the keys
    targets_ptr,  # [M] or None
    norm_ptr,  # [M_pad]
    z_ptr,  # [M, D] queries, any strides
    scale_ptr,  # 0-d or None
    loss_ptr,  # [M] float32, written, like the results below
    lse_ptr,  # [M] float32
    hit_ptr,  # [M] bool or None
    dz_ptr,  # [M, D] float32
    dscale_rows_ptr,  # [M] float32
    M,
    N,
    D,
    M_pad,
    D_pad,
    S,
    stride_zm,
    stride_zd,
    scale_factor,
    NORMALIZE: tl.constexpr,
    SPLITS: tl.constexpr,  # S or more
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """One program merges the splits of ROWS rows, adds their positives, and writes all results."""
    scale = effective_scale(scale_ptr, scale_factor)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    splits = tl.arange(0, SPLITS)[:, None]
    slots = splits.to(tl.int64) * M_pad + rows[None, :]  # [SPLITS, ROWS]
    mask = (splits < S) & (rows < M)[None, :]
    part = tl.load(max_ptr + slots, mask=mask, other=float("-inf"))
    best = tl.max(part, axis=0)
    base = finite(best)
    total = tl.sum(
        tl.load(sum_ptr + slots, mask=mask, other=0.0) * tl.exp2(part - base[None, :]), axis=0
    )
    negative = (base + tl.log2(total)) * LN2
    positive = positive_logit(x_ptr, k_ptr, targets_ptr, rows, M, N, D_pad, ROWS, COLS) * scale
    loss = softplus(negative - positive)
    lse = positive + loss
    tl.store(loss_ptr + rows, loss, mask=rows < M)
    tl.store(lse_ptr + rows, lse, mask=rows < M)
    if hit_ptr is not None:
        if positive_ptr is not None:
            hit = tl.load(positive_ptr + rows, mask=rows < M, other=0.0) > best
        else:
            hit = exceeds_best(
                positive * LOG2E, best, scale, x_ptr, k_ptr, targets_ptr, rows, M, N, D_pad, ROWS,
                COLS,
            )  # fmt: skip
        tl.store(hit_ptr + rows, hit & (loss == loss), mask=rows < M)

    weight = tl.exp2(part - (lse * LOG2E)[None, :])[:, :, None]  # [SPLITS, ROWS, 1]
    positive_w = one_minus_exp(loss)[:, None]
    partners = load_partners(targets_ptr, rows, M, N)
    length = tl.maximum(tl.load(norm_ptr + rows), EPS)[:, None]
    dot_x = tl.zeros([ROWS], tl.float32)  # <dx, x> / scale
    for first in range(0, D, COLS):
        cols = first + tl.arange(0, COLS)
        ptrs = slots[:, :, None] * D_pad + cols[None, None, :]
        parts = tl.load(
            acc_ptr + ptrs, mask=mask[:, :, None] & (cols < D)[None, None, :], other=0.0
        )
        dx = tl.sum(weight * parts, axis=0)  # [ROWS, COLS]
        dx -= positive_w * load_rows(k_ptr, partners, cols, N, D_pad, D_pad, 1)
        x = load_rows(z_ptr, rows, cols, M, D, stride_zm, stride_zd)
        dot_x += tl.sum(dx * tl.div_rn(x, length), axis=1)
        # stored where the result will be, so that the splits are read once
        ptrs = dz_ptr + rows.to(tl.int64)[:, None] * D + cols[None, :]
        tl.store(ptrs, dx, mask=(rows < M)[:, None] & (cols < D)[None, :])
    tl.store(dscale_rows_ptr + rows, dot_x, mask=rows < M)

    tl.debug_barrier()
    dot_x = tl.where(tl.load(norm_ptr + rows) < EPS, 0.0, dot_x)
    for first in range(0, D, COLS):
        cols = first + tl.arange(0, COLS)
        dx = load_rows(dz_ptr, rows, cols, M, D, D, 1)
        if NORMALIZE:
            x = load_rows(z_ptr, rows, cols, M, D, stride_zm, stride_zd)
            dx = tl.div_rn(dx - dot_x[:, None] * tl.div_rn(x, length), length)
        ptrs = dz_ptr + rows.to(tl.int64)[:, None] * D + cols[None, :]
        tl.store(ptrs, dx * scale, mask=(rows < M)[:, None] & (cols < D)[None, :])
