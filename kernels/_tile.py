"""Triton helpers and the prologue shared by the similarity kernels.

Every kernel reads unit rows x = z / max(norm, 1e-12) from a zero-padded, contiguous copy in z's
dtype: tiles load without masks, and positives, sums and gradients all see the same rounded x.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
EPS = tl.constexpr(1e-12)  # of torch.nn.functional.normalize
STRIPS = tl.constexpr(64)  # at most so many programs have a part of a row's sum
MAX_STRIPS = 64  # of `strips`; fewer in tests
# Of the fixed offset, in base 2: with logits in +-88.7 exponents lie in [-78, 101], so 2**24
# terms stay finite, and a term that flushes to zero is below 2**-48 of its row's largest.
HEADROOM = tl.constexpr(100.0)
# exp2(s - lse) = exp2(s - SPLIT) * exp2(SPLIT - lse): with the fixed offset's logits both factors
# lie in 2**+-121, so each is a normal number, also times w / grad_max down to 2**-45.
SPLIT = tl.constexpr(32.0)
PAD = 128  # rows of the padded copy are a multiple of it; every BLOCK_M and BLOCK_N divides it
WHOLE_D = 256  # 16-bit rows up to here are padded to a power of two, and stay on chip whole
UNIT_ROWS = {"ROWS": 16, "COLS": 64, "num_warps": 4}


@triton.jit
def effective_scale(scale_ptr, scale_factor):
    """Inverse temperature, NaN where it is not positive; `scale_ptr` may be None."""
    scale = scale_factor
    if scale_ptr is not None:
        scale = tl.load(scale_ptr).to(tl.float32) * scale_factor
    return tl.where(scale > 0, scale, float("nan"))


@triton.jit
def round_tf32(x):
    """Nearest 10-bit mantissa, ties to even: the result is exact in a TF32 product.

    The hardware would truncate instead, which pulls every product towards zero.
    """
    bits = x.to(tl.uint32, bitcast=True)
    bits += 0xFFF + ((bits >> 13) & 1)
    # the carry would turn a NaN into zero
    return tl.where(x == x, (bits & 0xFFFFE000).to(tl.float32, bitcast=True), x)


@triton.jit
def load_tile(
    x_ptr,  # [M_pad, D_pad]
    first_row,
    first_col,
    D_pad,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    BOUNDED: tl.constexpr = False,  # the tile may reach past D_pad, where it is zero
):
    """Tile of the padded copy, inside its rows: [ROWS, COLS]."""
    # int64: row * D_pad passes 2**31 at 2**24 x 128
    ptr = x_ptr + tl.cast(first_row, tl.int64) * D_pad + first_col
    cols = tl.arange(0, COLS)
    ptrs = ptr + tl.arange(0, ROWS)[:, None] * D_pad + cols[None, :]
    if BOUNDED:
        return tl.load(ptrs, mask=first_col + cols[None, :] < D_pad, other=0.0)
    return tl.load(ptrs)


@triton.jit
def load_whole(
    x_ptr,  # [M_pad, D_pad]
    first_row,
    D_pad,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """All features of a block of rows if WHOLE, that is D_pad == BLOCK_K, else None."""
    tile = None
    if WHOLE:
        tile = load_tile(x_ptr, first_row, 0, D_pad, ROWS, BLOCK_K)
    return tile


@triton.jit
def similarities(
    a,  # [BLOCK_M, BLOCK_K] of `load_whole`, or None
    b,  # [BLOCK_N, BLOCK_K] likewise
    x_ptr,  # [M_pad, D_pad]
    y_ptr,  # [N_pad, D_pad]
    first_m,
    first_n,
    D_pad,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Dot products of two blocks of rows, BLOCK_K features at a time: [BLOCK_M, BLOCK_N]."""
    if a is not None:
        s = tl.dot(a, tl.trans(b), input_precision=PRECISION)
    else:
        s = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in range(0, D_pad, BLOCK_K):
            a_k = load_tile(x_ptr, first_m, k, D_pad, BLOCK_M, BLOCK_K)
            b_k = load_tile(y_ptr, first_n, k, D_pad, BLOCK_N, BLOCK_K)
            s = tl.dot(a_k, tl.trans(b_k), s, input_precision=PRECISION)
    return s


@triton.jit
def add_product(
    acc,  # [BLOCK_M, BLOCK_D] float32
    g,  # [BLOCK_M, BLOCK_N] float32
    b,  # [BLOCK_N, BLOCK_D] of `load_whole`, or None: they are loaded here
    y_ptr,  # [N_pad, D_pad]
    first_n,
    first_d,
    D_pad,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of acc + g y, with the weights g rounded to the dtype of y: [BLOCK_M, BLOCK_D]."""
    if PRECISION == "tf32":
        g = round_tf32(g)
    if b is None:
        b = load_tile(y_ptr, first_n, first_d, D_pad, BLOCK_N, BLOCK_D, BOUNDED=True)
    return tl.dot(g.to(b.dtype), b, acc, input_precision=PRECISION)


@triton.jit
def store_sum(sum_ptr, acc, first_m, first_d, D_pad, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write acc [BLOCK_M, BLOCK_D] to its rows and features of sum_ptr [M_pad, D_pad]."""
    offs_m, offs_d = first_m + tl.arange(0, BLOCK_M), first_d + tl.arange(0, BLOCK_D)
    ptrs = sum_ptr + offs_m.to(tl.int64)[:, None] * D_pad + offs_d[None, :]
    tl.store(ptrs, acc, mask=offs_d[None, :] < D_pad)


@triton.jit
def load_weight(factors_ptr, offs, M_pad, ONLINE: tl.constexpr):
    """Weights of rows in `softmax_gradient`, from `factors_kernel`'s vectors; None without them.

    With the fixed offset exp2(-lse) is part of the weight.
    """
    weight = None
    if factors_ptr is not None:
        first = 0 if ONLINE else 2 * tl.cast(M_pad, tl.int64)
        weight = tl.load(factors_ptr + first + offs)
    return weight


@triton.jit
def load_lse(factors_ptr, offs, M_pad, SHIFT: tl.constexpr, ONLINE: tl.constexpr):
    """The same for the base-2 lse, which only ONLINE needs."""
    lse = None
    if ONLINE and factors_ptr is not None:
        lse = tl.load(factors_ptr + M_pad + offs) - SHIFT
    return lse


@triton.jit
def softmax_gradient(s, w_m, lse_m, w_n, lse_n, SHIFT: tl.constexpr):
    """w_m exp(s - lse_m) + w_n exp(s - lse_n), without the side whose w is None.

    Weights and lse as of `load_weight` and `load_lse`: [BLOCK_M, BLOCK_N].
    """
    if lse_m is None and lse_n is None:
        g = tl.exp2(s - (SPLIT - SHIFT))
        if w_n is None:
            g *= w_m[:, None]
        elif w_m is None:
            g *= w_n[None, :]
        else:
            g *= w_m[:, None] + w_n[None, :]
    elif w_n is None:
        g = w_m[:, None] * tl.exp2(s - lse_m[:, None])
    elif w_m is None:
        g = w_n[None, :] * tl.exp2(s - lse_n[None, :])
    else:
        g = w_m[:, None] * tl.exp2(s - lse_m[:, None])
        g += w_n[None, :] * tl.exp2(s - lse_n[None, :])
    return g


@triton.jit
def other_case(scale2, limit, ONLINE: tl.constexpr):
    """Whether the launch of the other case computes this call; False for a NaN scale."""
    return scale2 <= limit if ONLINE else scale2 > limit


@triton.jit
def finite(maximum):
    """0 for a maximum of -inf, which only an empty set has: -inf - -inf would be NaN."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def add_to_lse(row_max, row_sum, s):
    """(maximum, sum of exp2 above it) of rows, with the tile s [BLOCK_M, BLOCK_N] added."""
    new_max = tl.maximum(row_max, tl.max(s, axis=1))
    base = finite(new_max)
    row_sum = row_sum * tl.exp2(row_max - base) + tl.sum(tl.exp2(s - base[:, None]), axis=1)
    return new_max, row_sum


@triton.jit
def offset_terms(s, scale2, ONLINE: tl.constexpr):
    """Terms of the sums above the fixed offset; None with ONLINE: [BLOCK_M, BLOCK_N]."""
    e = None
    if not ONLINE:
        e = tl.exp2(s - (scale2 - HEADROOM))
    return e


@triton.jit
def add_to_rows(row_max, row_sum, s, e):
    """(maximum, sum) of rows with the tile s [BLOCK_M, BLOCK_N] added, e of `offset_terms`."""
    if e is None:
        row_max, row_sum = add_to_lse(row_max, row_sum, s)
    else:
        row_sum += tl.sum(e, axis=1)
    return row_max, row_sum


@triton.jit
def add_to_columns(ptrs, s, e, load_mask, store_mask):
    """Add a tile to the sums of its columns, which lie in memory of this program between tiles.

    Args:
        ptrs: [BLOCK_N] sums above the fixed offset; with ONLINE base-2 lse.
        s: [BLOCK_M, BLOCK_N] logits.
        e: of `offset_terms`.
        load_mask: false in the first tile of a column, before which nothing was stored.
        store_mask: columns to write, or None for all.
    """
    if e is None:
        base = finite(tl.max(s, axis=0))
        col = base + tl.log2(tl.sum(tl.exp2(s - base[None, :]), axis=0))
        previous = tl.load(ptrs, mask=load_mask, other=float("-inf"))
        base = finite(tl.maximum(col, previous))
        col = base + tl.log2(tl.exp2(col - base) + tl.exp2(previous - base))
    else:
        col = tl.sum(e, axis=0) + tl.load(ptrs, mask=load_mask, other=0.0)
    tl.store(ptrs, col, mask=store_mask)


@triton.jit
def max_to_columns(ptrs, s, load_mask, store_mask):
    """The same for the largest logit of each column."""
    previous = tl.load(ptrs, mask=load_mask, other=float("-inf"))
    tl.store(ptrs, tl.maximum(previous, tl.max(s, axis=0)), mask=store_mask)


@triton.jit
def merge_lse(sums_ptr, rows, M, M_pad, G, scale2, limit):
    """Base-2 logsumexp of rows from their G slots of sums_ptr [G, M_pad]: [ROWS]."""
    slots = tl.arange(0, STRIPS)[:, None]
    ptrs = sums_ptr + slots.to(tl.int64) * M_pad + rows[None, :]
    mask = (slots < G) & (rows < M)[None, :]
    if scale2 <= limit:
        total = tl.sum(tl.load(ptrs, mask=mask, other=0.0), axis=0)
        # the offset is taken out of the sum and not of its logarithm, which would be rounded at
        # its size; but for a sum that this would make subnormal
        large = total > 1.0
        unshift = tl.where(large, tl.exp2(-HEADROOM), 1.0)
        lse = tl.where(large, scale2, scale2 - HEADROOM) + tl.log2(total * unshift)
    else:
        part = tl.load(ptrs, mask=mask, other=float("-inf"))  # [STRIPS, ROWS]
        base = finite(tl.max(part, axis=0))
        lse = base + tl.log2(tl.sum(tl.exp2(part - base[None, :]), axis=0))
    return lse


@triton.jit
def merge_sums(sums_ptr, rows, M, M_pad, G):
    """Sum of rows over their G slots of sums_ptr [G, M_pad]: [ROWS]."""
    slots = tl.arange(0, STRIPS)[:, None]
    ptrs = sums_ptr + slots.to(tl.int64) * M_pad + rows[None, :]
    return tl.sum(tl.load(ptrs, mask=(slots < G) & (rows < M)[None, :], other=0.0), axis=0)


@triton.jit
def merge_max(best_ptr, rows, M, M_pad, G):
    """Maximum of rows over their G slots of best_ptr [G, M_pad]: [ROWS]."""
    slots = tl.arange(0, STRIPS)[:, None]
    ptrs = best_ptr + slots.to(tl.int64) * M_pad + rows[None, :]
    mask = (slots < G) & (rows < M)[None, :]
    return tl.max(tl.load(ptrs, mask=mask, other=float("-inf")), axis=0)


@triton.jit
def load_or(ptr, offs, count, OTHER: tl.constexpr):
    """Integers at offs, OTHER past count; offs themselves where there is no vector."""
    values = offs
    if ptr is not None:
        values = tl.load(ptr + offs, mask=offs < count, other=OTHER)
    return values


@triton.jit
def load_partners(targets_ptr, rows, M, N):
    """Index of each row's positive; N, at which nothing is loaded, for a target outside [0, N)."""
    partners = load_or(targets_ptr, rows, M, 0)
    if targets_ptr is not None:
        partners = tl.where((partners >= 0) & (partners < N), partners, N)
    return partners


@triton.jit
def meets_diagonal(first_m, first_n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Whether a tile has a row i and a column i."""
    return (first_n < first_m + BLOCK_M) & (first_m < first_n + BLOCK_N)


@triton.jit
def drop_pairs(
    s,  # [BLOCK_M, BLOCK_N]
    first_m,
    first_n,
    target_m,  # row i and column j are a positive pair where target_m[i] == target_n[j]
    col_targets_ptr,  # [N], or None for the column's index
    id_m,
    col_ids_ptr,  # [N] or None
    M,
    N,
    KEYS_ARE_NEGATIVES: tl.constexpr,  # the positives are among the columns: leave them out
    SAME_ID_ONLY: tl.constexpr,  # leave out pairs of different ids instead of equal ones
    MASK_ALL: tl.constexpr,  # any tile may have such pairs, not only the diagonal and the edges
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """-inf for logits of pairs that are left out, and of padding: [BLOCK_M, BLOCK_N]."""
    needs_mask = (first_m + BLOCK_M > M) | (first_n + BLOCK_N > N)
    if KEYS_ARE_NEGATIVES:
        needs_mask |= meets_diagonal(first_m, first_n, BLOCK_M, BLOCK_N)
    if MASK_ALL:
        needs_mask = True
    if needs_mask:
        offs_m, offs_n = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N)
        keep = (offs_m < M)[:, None] & (offs_n < N)[None, :]
        if KEYS_ARE_NEGATIVES:
            target_n = load_or(col_targets_ptr, offs_n, N, -1).to(tl.int32)
            keep &= target_m[:, None] != target_n[None, :]
        if col_ids_ptr is not None:
            id_n = load_or(col_ids_ptr, offs_n, N, -1)
            same = (id_m[:, None] == id_n[None, :]) & (id_m >= 0)[:, None]
            if SAME_ID_ONLY:
                keep &= same
            else:
                keep &= ~same
        s = tl.where(keep, s, float("-inf"))
    return s


@triton.jit
def drop_self_and_padding(s, first_m, first_n, M, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """-inf for logits of a row with itself and for columns past M: [BLOCK_M, BLOCK_N]."""
    if meets_diagonal(first_m, first_n, BLOCK_M, BLOCK_N) | (first_n + BLOCK_N > M):
        offs_m, offs_n = first_m + tl.arange(0, BLOCK_M), first_n + tl.arange(0, BLOCK_N)
        keep = (offs_n[None, :] < M) & (offs_m[:, None] != offs_n[None, :])
        s = tl.where(keep, s, float("-inf"))
    return s


@triton.jit
def load_rows(z_ptr, rows, cols, M, D, stride_zm, stride_zd):
    """Rows and columns of a strided [M, D] matrix as float32, zero outside: [ROWS, COLS]."""
    # int64: a stride may be anything
    ptrs = z_ptr + rows.to(tl.int64)[:, None] * stride_zm + cols.to(tl.int64)[None, :] * stride_zd
    mask = (rows[:, None] < M) & (cols[None, :] < D)
    return tl.load(ptrs, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["M", "D"])
def unit_rows_kernel(
    z_ptr,  # [M, D], any strides
    x_ptr,  # [M_pad, D_pad], written; zero outside [M, D]
    norm_ptr,  # [M_pad] float32, written; 1 without NORMALIZE
    M,
    D,
    D_pad,
    stride_zm,
    stride_zd,
    NORMALIZE: tl.constexpr,
    TF32: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """One program normalises ROWS rows."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    norm = tl.full([ROWS], 1.0, tl.float32)
    if NORMALIZE:
        squares = tl.zeros([ROWS], tl.float32)
        for first in range(0, D, COLS):
            u = load_rows(z_ptr, rows, first + tl.arange(0, COLS), M, D, stride_zm, stride_zd)
            squares += tl.sum(u * u, axis=1)
        norm = tl.sqrt_rn(squares)
    tl.store(norm_ptr + rows, norm)
    for first in range(0, D_pad, COLS):
        cols = first + tl.arange(0, COLS)
        x = load_rows(z_ptr, rows, cols, M, D, stride_zm, stride_zd)
        if NORMALIZE:
            x = tl.div_rn(x, tl.maximum(norm, EPS)[:, None])
        if TF32:
            x = round_tf32(x)
        ptrs = x_ptr + rows.to(tl.int64)[:, None] * D_pad + cols[None, :]
        tl.store(ptrs, x.to(x_ptr.dtype.element_ty))


def padded_width(D: int, dtype: torch.dtype) -> int:
    """Columns of the padded copy."""
    if dtype is not torch.float32 and D <= WHOLE_D:
        return max(64, int(triton.next_power_of_2(D)))
    return -(-D // 64) * 64


def unit_rows(
    z: Tensor, normalize: bool, precision: str, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Launch the prologue: (x [M_pad, D_pad] in `dtype` or z's own, norm [M_pad] float32)."""
    M, D = z.shape
    rows = triton.cdiv(M, PAD) * PAD
    dtype = dtype or z.dtype
    x = z.new_empty(rows, padded_width(D, dtype), dtype=dtype)
    norm = z.new_empty(rows, dtype=torch.float32)
    unit_rows_kernel[(rows // UNIT_ROWS["ROWS"],)](
        z, x, norm, M, D, x.shape[1], *z.stride(), normalize, precision == "tf32", **UNIT_ROWS
    )
    return x, norm


def strips(M: int) -> tuple[int, int]:
    """(rows of a strip, number of strips)."""
    strip = triton.cdiv(triton.cdiv(M, PAD), MAX_STRIPS) * PAD
    return strip, triton.cdiv(M, strip)


def matmul_precision(dtype: torch.dtype, device: torch.device) -> str:
    """How `tl.dot` multiplies float32: "tf32" where torch's CUDA matmul does, else "ieee"."""
    if dtype is not torch.float32 or torch.version.hip is not None or device.type != "cuda":
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
