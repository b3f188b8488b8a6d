"""Backward kernel of InfoNCE: the gradient of one side from negatives; formulas in info_nce.py.

A program owns some rows of one side and walks over all of the other: no atomics. For dqueries the
rows are the queries, for the negatives' gradient it is called with the sides exchanged.
"""

import triton
import triton.language as tl

from sslops.kernels._tile import (
    LOG2E,
    add_product,
    drop_pairs,
    effective_scale,
    load_lse,
    load_or,
    load_weight,
    load_whole,
    other_case,
    similarities,
    softmax_gradient,
    store_sum,
)


@triton.jit(do_not_specialize=["M", "N"])
def info_nce_bwd_kernel(
    x_ptr,  # [M_pad, D_pad] rows of this side
    y_ptr,  # [N_pad, D_pad] of the other
    scale_ptr,  # 0-d or None
    row_factors_ptr,  # [4, M_pad] of the losses of these rows, or None if they have none
    col_factors_ptr,  # [4, N_pad] of the other side's, or None
    row_targets_ptr,  # [M], or None for the row's index: a pair of equal targets is positive
    col_targets_ptr,  # [N] or None
    row_ids_ptr,  # [M] or None
    col_ids_ptr,  # [N] or None
    sum_ptr,  # [M_pad, D_pad] float32, written: sum_j g[i, j] y[j] / grad_max
    M,
    N,
    M_pad,
    N_pad,
    D_pad,
    scale_factor,
    limit,
    KEYS_ARE_NEGATIVES: tl.constexpr,
    SAME_ID_ONLY: tl.constexpr,
    ONLINE: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns BLOCK_M rows and BLOCK_D of their features."""
    scale2 = effective_scale(scale_ptr, scale_factor) * LOG2E
    if other_case(scale2, limit, ONLINE):
        return
    MASK_ALL: tl.constexpr = (
        row_ids_ptr is not None or row_targets_ptr is not None or col_targets_ptr is not None
    )
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    # |g| / grad_max <= 2, times 2**14: float16 would lose what is below 2**-24
    SHIFT: tl.constexpr = 14.0 if dtype == tl.float16 else 0.0
    UNSHIFT: tl.constexpr = 2.0**-14 if dtype == tl.float16 else 1.0
    first_m, first_d = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_D
    offs_m = first_m + tl.arange(0, BLOCK_M)
    target_m = load_or(row_targets_ptr, offs_m, M, -1).to(tl.int32)
    id_m = load_or(row_ids_ptr, offs_m, M, -1)
    w_m = load_weight(row_factors_ptr, offs_m, M_pad, ONLINE)
    lse_m = load_lse(row_factors_ptr, offs_m, M_pad, SHIFT, ONLINE)
    a = load_whole(x_ptr, first_m, D_pad, WHOLE, BLOCK_M, BLOCK_K)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first_n in range(0, N, BLOCK_N):
        offs_n = first_n + tl.arange(0, BLOCK_N)
        b = load_whole(y_ptr, first_n, D_pad, WHOLE, BLOCK_N, BLOCK_K)
        s = similarities(
            a, b, x_ptr, y_ptr, first_m, first_n, D_pad, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
        )
        s *= scale2
        s = drop_pairs(
            s, first_m, first_n, target_m, col_targets_ptr, id_m, col_ids_ptr, M, N,
            KEYS_ARE_NEGATIVES, SAME_ID_ONLY, MASK_ALL, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        w_n = load_weight(col_factors_ptr, offs_n, N_pad, ONLINE)
        lse_n = load_lse(col_factors_ptr, offs_n, N_pad, SHIFT, ONLINE)
        g = softmax_gradient(s, w_m, lse_m, w_n, lse_n, SHIFT)
        acc = add_product(acc, g, b, y_ptr, first_n, first_d, D_pad, BLOCK_N, BLOCK_D, PRECISION)

    store_sum(sum_ptr, acc * UNSHIFT, first_m, first_d, D_pad, BLOCK_M, BLOCK_D)
