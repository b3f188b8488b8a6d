"""Forward kernels of NT-Xent: sums of tiles, then the loss of rows; formulas in nt_xent.py.

The rows are cut into G <= STRIPS strips; a program owns one pair of strips A <= B and writes one
number for each of their rows: slot B of A's rows, slot A of B's. No atomics, a fixed order.
"""

import triton
import triton.language as tl

from sslops.kernels._tile import (
    HEADROOM,
    LN2,
    LOG2E,
    add_to_lse,
    drop_self_and_padding,
    effective_scale,
    finite,
    join_best,
    join_slots,
    load_rows,
    load_tile,
    other_case,
    similarities,
)


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
        if WHOLE:
            a = load_tile(x_ptr, first_m, 0, D_pad, BLOCK_M, BLOCK_K)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        row_pos, row_neg = row_max, row_max
        for first_n in range(n0, tl.minimum(n0 + strip, M), BLOCK_N):
            offs_n = first_n + tl.arange(0, BLOCK_N)
            if WHOLE:
                b = load_tile(x_ptr, first_n, 0, D_pad, BLOCK_N, BLOCK_K)
                s = tl.dot(a, tl.trans(b), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
            else:
                s = similarities(
                    x_ptr, x_ptr, first_m, first_n, D_pad, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
                )
            s *= scale2
            if (A == B) | (first_n + BLOCK_N > M):
                s = drop_self_and_padding(s, offs_m, offs_n, M)

            # A column's number is summed over the row blocks in memory that is this program's.
            col_ptr = sums_ptr + col_slot + offs_n
            again = tl.full([BLOCK_N], 1, tl.int1) & (first_m > m0)
            mine = tl.full([BLOCK_N], 1, tl.int1) & (A < B)  # row sums do all of A == B
            if ONLINE:
                row_max, row_sum = add_to_lse(row_max, row_sum, s)
                base = finite(tl.max(s, axis=0))
                col = base + tl.log2(tl.sum(tl.exp2(s - base[None, :]), axis=0))
                before = tl.load(col_ptr, mask=again & mine, other=float("-inf"))
                base = finite(tl.maximum(col, before))
                col = base + tl.log2(tl.exp2(col - base) + tl.exp2(before - base))
            else:
                e = tl.exp2(s - (scale2 - HEADROOM))
                row_sum += tl.sum(e, axis=1)
                col = tl.sum(e, axis=0) + tl.load(col_ptr, mask=again & mine, other=0.0)
            tl.store(col_ptr, col, mask=mine)

            if STATS:
                same = (offs_m % samples)[:, None] == (offs_n % samples)[None, :]
                pos = tl.where(same, s, float("-inf"))
                neg = tl.where(same, float("-inf"), s)
                row_pos = tl.maximum(row_pos, tl.max(pos, axis=1))
                row_neg = tl.maximum(row_neg, tl.max(neg, axis=1))
                col_ptr = best_ptr + col_slot + offs_n
                before = tl.load(col_ptr, mask=again & mine, other=float("-inf"))
                tl.store(col_ptr, tl.maximum(before, tl.max(pos, axis=0)), mask=mine)
                col_ptr += neg_plane
                before = tl.load(col_ptr, mask=again & mine, other=float("-inf"))
                tl.store(col_ptr, tl.maximum(before, tl.max(neg, axis=0)), mask=mine)
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
    """One program finishes ROWS rows: joins their slots, and takes their positives' logits."""
    scale = effective_scale(scale_ptr, scale_factor)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lse = join_slots(sums_ptr, rows, M, M_pad, G, scale * LOG2E, limit) * LN2

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
        pos = join_best(best_ptr, rows, M, M_pad, G)
        neg = join_best(best_ptr + tl.cast(G, tl.int64) * M_pad, rows, M, M_pad, G)
        # a maximum skips NaN, the sum did not
        tl.store(hit_ptr + rows, (pos > neg) & (lse == lse), mask=rows < M)
