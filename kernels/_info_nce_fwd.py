"""Forward kernels of InfoNCE: sums of tiles, then the loss of rows; formulas in info_nce.py.

Rows and columns are cut into at most STRIPS strips each; a program owns one pair of them and
writes one number for each of its rows, with SYMMETRIC also for each of its columns: slot B of strip
A's rows, slot A of strip B's columns. No atomics, a fixed order.
"""

import triton
import triton.language as tl

from sslops.kernels._loss import exceeds_best, positive_logit, softplus
from sslops.kernels._tile import (
    LN2,
    LOG2E,
    add_to_columns,
    add_to_rows,
    drop_pairs,
    effective_scale,
    finite,
    load_or,
    load_whole,
    max_to_columns,
    merge_lse,
    merge_max,
    offset_terms,
    other_case,
    similarities,
)


@triton.jit(do_not_specialize=["M", "N"])
def info_nce_fwd_kernel(
    x_ptr,  # [M_pad, D_pad] rows
    y_ptr,  # [N_pad, D_pad] columns
    scale_ptr,  # 0-d, or None for 1
    targets_ptr,  # [M], or None: the positive of row i is column i
    row_ids_ptr,  # [M] or None
    col_ids_ptr,  # [N] or None
    rows_ptr,  # [H, M_pad] float32, written: sums above the offset; ONLINE: their base-2 lse
    cols_ptr,  # [G, N_pad] float32, written likewise; or None
    row_best_ptr,  # [H, M_pad] float32, written: largest logit of a negative; or None
    col_best_ptr,  # [G, N_pad] float32, written likewise; or None
    positive_ptr,  # [M_pad] float32, written: logit of the positive, as the tile has it; or None
    M,
    N,
    M_pad,
    N_pad,
    D_pad,
    row_strip,  # rows of a strip, a multiple of PAD, like the columns of one
    col_strip,
    scale_factor,
    limit,
    KEYS_ARE_NEGATIVES: tl.constexpr,  # the positives are among the columns
    SAME_ID_ONLY: tl.constexpr,
    ONLINE: tl.constexpr,
    WHOLE: tl.constexpr,  # D_pad == BLOCK_K: a row block is loaded once
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns the tiles of strip A of the rows with strip B of the columns."""
    scale2 = effective_scale(scale_ptr, scale_factor) * LOG2E
    if other_case(scale2, limit, ONLINE):
        return
    MASK_ALL: tl.constexpr = row_ids_ptr is not None or targets_ptr is not None
    SYMMETRIC: tl.constexpr = cols_ptr is not None
    STATS: tl.constexpr = row_best_ptr is not None
    A, B = tl.program_id(0), tl.program_id(1)
    m0, n0 = A * row_strip, B * col_strip
    # int64: slots * rows passes 2**31 only at 2**25 rows, and costs nothing
    row_slot, col_slot = tl.cast(B, tl.int64) * M_pad, tl.cast(A, tl.int64) * N_pad

    for first_m in range(m0, tl.minimum(m0 + row_strip, M), BLOCK_M):
        offs_m = first_m + tl.arange(0, BLOCK_M)
        target_m = load_or(targets_ptr, offs_m, M, -1).to(tl.int32)
        id_m = load_or(row_ids_ptr, offs_m, M, -1)
        a = load_whole(x_ptr, first_m, D_pad, WHOLE, BLOCK_M, BLOCK_K)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        row_best = row_max
        for first_n in range(n0, tl.minimum(n0 + col_strip, N), BLOCK_N):
            offs_n = first_n + tl.arange(0, BLOCK_N)
            b = load_whole(y_ptr, first_n, D_pad, WHOLE, BLOCK_N, BLOCK_K)
            s = similarities(
                a, b, x_ptr, y_ptr, first_m, first_n, D_pad, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
            )
            s *= scale2
            if KEYS_ARE_NEGATIVES and STATS:
                positive = tl.where(target_m[:, None] == offs_n[None, :], s, 0.0)
                in_tile = (target_m >= first_n) & (target_m < first_n + BLOCK_N)
                tl.store(positive_ptr + offs_m, tl.sum(positive, axis=1), mask=in_tile)
            s = drop_pairs(
                s, first_m, first_n, target_m, None, id_m, col_ids_ptr, M, N,
                KEYS_ARE_NEGATIVES, SAME_ID_ONLY, MASK_ALL, BLOCK_M, BLOCK_N,
            )  # fmt: skip
            e = offset_terms(s, scale2, ONLINE)
            row_max, row_sum = add_to_rows(row_max, row_sum, s, e)
            if STATS:
                row_best = tl.maximum(row_best, tl.max(s, axis=1))
            if SYMMETRIC:
                load_mask = tl.full([BLOCK_N], 1, tl.int1) & (first_m > m0)
                add_to_columns(cols_ptr + col_slot + offs_n, s, e, load_mask, None)
                if STATS:
                    max_to_columns(col_best_ptr + col_slot + offs_n, s, load_mask, None)
        if ONLINE:
            row_sum = finite(row_max) + tl.log2(row_sum)
        tl.store(rows_ptr + row_slot + offs_m, row_sum)
        if STATS:
            tl.store(row_best_ptr + row_slot + offs_m, row_best)
        if SYMMETRIC:
            # the next row block's threads read the column numbers that other threads wrote
            tl.debug_barrier()


@triton.jit(do_not_specialize=["M", "N", "G"])
def info_nce_loss_kernel(
    x_ptr,  # [M_pad, D_pad]
    k_ptr,  # [N_pad, D_pad] the positives' side
    scale_ptr,  # 0-d or None
    targets_ptr,  # [M] or None
    sums_ptr,  # [G, M_pad]
    best_ptr,  # [G, M_pad] or None
    positive_ptr,  # [M_pad], or None if the positives were in no tile
    loss_ptr,  # [M] float32, written
    lse_ptr,  # [M] float32, written
    hit_ptr,  # [M] bool, written; or None
    M,
    N,  # of the positives' side
    M_pad,
    D_pad,
    G,
    scale_factor,
    limit,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """One program finishes ROWS rows: merges their slots, and computes their positives' logits."""
    scale = effective_scale(scale_ptr, scale_factor)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    negative = merge_lse(sums_ptr, rows, M, M_pad, G, scale * LOG2E, limit) * LN2
    positive = positive_logit(x_ptr, k_ptr, targets_ptr, rows, M, N, D_pad, ROWS, COLS) * scale
    loss = softplus(negative - positive)
    tl.store(loss_ptr + rows, loss, mask=rows < M)
    tl.store(lse_ptr + rows, positive + loss, mask=rows < M)
    if hit_ptr is not None:
        best = merge_max(best_ptr, rows, M, M_pad, G)
        # as the tile has it: a negative that equals the positive row must tie
        if positive_ptr is not None:
            hit = tl.load(positive_ptr + rows, mask=rows < M, other=0.0) > best
        else:
            hit = exceeds_best(
                positive * LOG2E, best, scale, x_ptr, k_ptr, targets_ptr, rows, M, N, D_pad, ROWS,
                COLS,
            )  # fmt: skip
        # a maximum skips NaN, the sum did not
        tl.store(hit_ptr + rows, hit & (loss == loss), mask=rows < M)
