"""Backward kernel of InfoNCE: the negatives' share of one side; formulas in info_nce.py.

A program owns some rows of one side and walks over all of the other: no atomics. For dqueries the
rows are the queries, for the negatives' gradient it is called with the sides exchanged.
"""

import triton
import triton.language as tl

from sslops.kernels._tile import (
    LOG2E,
    SPLIT,
    drop_pairs,
    effective_scale,
    load_or,
    load_tile,
    other_case,
    round_tf32,
    similarities,
)


@triton.jit(do_not_specialize=["M", "N"])
def info_nce_bwd_kernel(
    x_ptr,  # [M_pad, D_pad] rows of this side
    y_ptr,  # [N_pad, D_pad] of the other
    scale_ptr,  # 0-d or None
    row_factors_ptr,  # [4, M_pad] of this side's losses, or None if it asks nothing
    col_factors_ptr,  # [4, N_pad] of the other's, or None
    row_asks_ptr,  # [M], or None for the row's number: a pair is positive where both ask the same
    col_asks_ptr,  # [N] or None
    row_ids_ptr,  # [M] or None
    col_ids_ptr,  # [N] or None
    sum_ptr,  # [M_pad, D_pad] float32, written: sum_j g[i, j] y[j] / peak
    M,
    N,
    M_pad,
    N_pad,
    D_pad,
    scale_factor,
    limit,
    OWN: tl.constexpr,
    WITHIN: tl.constexpr,
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
    IDS: tl.constexpr = row_ids_ptr is not None
    EVERYWHERE: tl.constexpr = IDS or row_asks_ptr is not None or col_asks_ptr is not None
    ROWS_ASK: tl.constexpr = row_factors_ptr is not None
    COLS_ASK: tl.constexpr = col_factors_ptr is not None
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    # |g| / peak <= 2 is lifted to 2**15: without it float16 loses what is below 2**-24
    LIFT: tl.constexpr = 14.0 if dtype == tl.float16 else 0.0
    UNLIFT: tl.constexpr = 2.0**-14 if dtype == tl.float16 else 1.0
    first_m, first_d = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_D
    offs_m, offs_d = first_m + tl.arange(0, BLOCK_M), first_d + tl.arange(0, BLOCK_D)
    ask_m = load_or(row_asks_ptr, offs_m, M, -1).to(tl.int32)
    id_m = load_or(row_ids_ptr, offs_m, M, -1)
    if ROWS_ASK:
        row_factors_ptr += 0 if ONLINE else 2 * tl.cast(M_pad, tl.int64)
        w_m = tl.load(row_factors_ptr + offs_m)
        if ONLINE:
            lse_m = tl.load(row_factors_ptr + M_pad + offs_m) - LIFT
    if COLS_ASK:
        col_factors_ptr += 0 if ONLINE else 2 * tl.cast(N_pad, tl.int64)
    if WHOLE:
        a = load_tile(x_ptr, first_m, 0, D_pad, BLOCK_M, BLOCK_K)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first_n in range(0, N, BLOCK_N):
        offs_n = first_n + tl.arange(0, BLOCK_N)
        if WHOLE:
            b = load_tile(y_ptr, first_n, 0, D_pad, BLOCK_N, BLOCK_K)
            s = tl.dot(a, tl.trans(b), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        else:
            s = similarities(
                x_ptr, y_ptr, first_m, first_n, D_pad, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
            )
        s *= scale2
        some = (first_m + BLOCK_M > M) | (first_n + BLOCK_N > N)
        if OWN:
            some |= (first_n < first_m + BLOCK_M) & (first_m < first_n + BLOCK_N)
        if EVERYWHERE:
            some = True
        if some:
            ask_n = load_or(col_asks_ptr, offs_n, N, -1).to(tl.int32)
            id_n = load_or(col_ids_ptr, offs_n, N, -1)
            s = drop_pairs(s, offs_m, offs_n, ask_m, ask_n, id_m, id_n, M, N, OWN, IDS, WITHIN)
        if COLS_ASK:
            w_n = tl.load(col_factors_ptr + offs_n)
        if ONLINE:
            g = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
            if ROWS_ASK:
                g += w_m[:, None] * tl.exp2(s - lse_m[:, None])
            if COLS_ASK:
                lse_n = tl.load(col_factors_ptr + N_pad + offs_n) - LIFT
                g += w_n[None, :] * tl.exp2(s - lse_n[None, :])
        else:
            g = tl.exp2(s - (SPLIT - LIFT))
            if ROWS_ASK and COLS_ASK:
                g *= w_m[:, None] + w_n[None, :]
            elif ROWS_ASK:
                g *= w_m[:, None]
            else:
                g *= w_n[None, :]
        if PRECISION == "tf32":
            g = round_tf32(g)
        if not WHOLE:
            b = load_tile(y_ptr, first_n, first_d, D_pad, BLOCK_N, BLOCK_D, BOUNDED=True)
        acc = tl.dot(g.to(dtype), b, acc, input_precision=PRECISION)

    ptrs = sum_ptr + offs_m.to(tl.int64)[:, None] * D_pad + offs_d[None, :]
    tl.store(ptrs, acc * UNLIFT, mask=offs_d[None, :] < D_pad)
