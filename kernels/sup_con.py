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
bounded. Numbers of positives come from the sorted labels. In the forward pass a program owns one
strip of rows and one of columns, and writes slot B of its rows for strip B of the columns. Reading
order: _tile.py, here the kernels, _finish.py, _config.py, then here the launchers; cases and units
as in nt_xent.py.

Extra memory: rows of z padded once, one float32 copy of them in the backward pass, and 8 * 64
bytes a row in the forward.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from sslops.kernels._architectures import family
from sslops.kernels._config import MAX_ROWS, cases, options
from sslops.kernels._finish import factors, finish, grad_max_of
from sslops.kernels._tile import (
    LN2,
    LOG2E,
    SPLIT,
    add_product,
    add_to_lse,
    add_to_rows,
    drop_self_and_padding,
    effective_scale,
    finite,
    load_lse,
    load_or,
    load_weight,
    load_whole,
    matmul_precision,
    merge_lse,
    merge_sums,
    offset_terms,
    other_case,
    similarities,
    softmax_gradient,
    store_sum,
    strips,
    unit_rows,
)

LOSS_OPTIONS = {"ROWS": 32, "num_warps": 4}


@triton.jit
def _is_positive(s, label_m, label_n):
    """Whether two rows carry one label and are not left out: [BLOCK_M, BLOCK_N]."""
    same = (label_m[:, None] == label_n[None, :]) & (label_m >= 0)[:, None]
    return same & (s != float("-inf"))


@triton.jit(do_not_specialize=["M"])
def sup_con_fwd_kernel(
    x_ptr,  # [M_pad, D_pad] unit rows
    labels_ptr,  # [M] int64
    scale_ptr,  # 0-d, or None for 1
    sums_ptr,  # [G, M_pad] float32, written: sums above the offset; ONLINE: their base-2 lse
    positives_ptr,  # [G, M_pad], written: INSIDE the same over positives, else their logits' sum
    M,
    M_pad,
    D_pad,
    row_strip,  # rows of a strip, a multiple of PAD
    strip,  # columns of one
    scale_factor,
    limit,
    INSIDE: tl.constexpr,
    ONLINE: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns the tiles of one strip of rows with one of the columns."""
    scale2 = effective_scale(scale_ptr, scale_factor) * LOG2E
    if other_case(scale2, limit, ONLINE):
        return
    m0, n0 = tl.program_id(0) * row_strip, tl.program_id(1) * strip
    slot = tl.cast(tl.program_id(1), tl.int64) * M_pad
    for first_m in range(m0, tl.minimum(m0 + row_strip, M), BLOCK_M):
        offs_m = first_m + tl.arange(0, BLOCK_M)
        label_m = load_or(labels_ptr, offs_m, M, -1)
        a = load_whole(x_ptr, first_m, D_pad, WHOLE, BLOCK_M, BLOCK_K)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        positive_sum = row_sum
        row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        positive_max = row_max
        for first_n in range(n0, tl.minimum(n0 + strip, M), BLOCK_N):
            offs_n = first_n + tl.arange(0, BLOCK_N)
            b = load_whole(x_ptr, first_n, D_pad, WHOLE, BLOCK_N, BLOCK_K)
            s = similarities(
                a, b, x_ptr, x_ptr, first_m, first_n, D_pad, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
            )
            s *= scale2
            s = drop_self_and_padding(s, first_m, first_n, M, BLOCK_M, BLOCK_N)
            positive = _is_positive(s, label_m, load_or(labels_ptr, offs_n, M, -1))
            e = offset_terms(s, scale2, ONLINE)
            row_max, row_sum = add_to_rows(row_max, row_sum, s, e)
            if not INSIDE:
                positive_sum += tl.sum(tl.where(positive, s, 0.0), axis=1)
            elif ONLINE:
                s = tl.where(positive, s, float("-inf"))
                positive_max, positive_sum = add_to_lse(positive_max, positive_sum, s)
            else:
                positive_sum += tl.sum(tl.where(positive, e, 0.0), axis=1)
        if ONLINE:
            row_sum = finite(row_max) + tl.log2(row_sum)
            if INSIDE:
                positive_sum = finite(positive_max) + tl.log2(positive_sum)
        tl.store(sums_ptr + slot + offs_m, row_sum)
        tl.store(positives_ptr + slot + offs_m, positive_sum)


@triton.jit(do_not_specialize=["M", "G"])
def sup_con_loss_kernel(
    scale_ptr,  # 0-d or None
    sums_ptr,  # [G, M_pad]
    positives_ptr,  # [G, M_pad]
    count_ptr,  # [M] float32: positives of a row
    loss_ptr,  # [M] float32, written
    lse_ptr,  # [M] float32, written
    positive_lse_ptr,  # [M] float32, written if INSIDE
    M,
    M_pad,
    G,
    scale_factor,
    limit,
    INSIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One program finishes ROWS rows."""
    scale = effective_scale(scale_ptr, scale_factor)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    count = tl.load(count_ptr + rows, mask=rows < M, other=0.0)
    at_least_1 = tl.maximum(count, 1.0)
    lse = merge_lse(sums_ptr, rows, M, M_pad, G, scale * LOG2E, limit) * LN2
    tl.store(lse_ptr + rows, lse, mask=rows < M)
    if INSIDE:
        positive = merge_lse(positives_ptr, rows, M, M_pad, G, scale * LOG2E, limit) * LN2
        tl.store(positive_lse_ptr + rows, positive, mask=rows < M)
        loss = lse - positive + tl.log2(at_least_1) * LN2
    else:
        loss = lse - merge_sums(positives_ptr, rows, M, M_pad, G) * LN2 / at_least_1
    tl.store(loss_ptr + rows, tl.where(count > 0, loss, 0.0 * scale), mask=rows < M)


@triton.jit(do_not_specialize=["M"])
def sup_con_bwd_kernel(
    x_ptr,  # [M_pad, D_pad]
    labels_ptr,  # [M] int64
    scale_ptr,  # 0-d or None
    factors_ptr,  # [3, M_pad], by lse
    positive_factors_ptr,  # INSIDE: [3, M_pad], by positive_lse; else [M_pad]: w / (grad_max |P|)
    sum_ptr,  # [M_pad, D_pad] float32, written: sum_j g[i, j] x[j] / grad_max
    M,
    M_pad,
    D_pad,
    scale_factor,
    limit,
    INSIDE: tl.constexpr,
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
    label_m = load_or(labels_ptr, offs_m, M, -1)
    w_m = load_weight(factors_ptr, offs_m, M_pad, ONLINE)
    lse_m = load_lse(factors_ptr, offs_m, M_pad, SHIFT, ONLINE)
    if INSIDE:
        positive_w_m = load_weight(positive_factors_ptr, offs_m, M_pad, ONLINE)
        positive_lse_m = load_lse(positive_factors_ptr, offs_m, M_pad, SHIFT, ONLINE)
    else:
        positive_w_m = tl.load(positive_factors_ptr + offs_m)
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
        positive = _is_positive(s, label_m, load_or(labels_ptr, offs_n, M, -1))
        w_n = load_weight(factors_ptr, offs_n, M_pad, ONLINE)
        if INSIDE:
            positive_w_n = load_weight(positive_factors_ptr, offs_n, M_pad, ONLINE)
        else:
            positive_w_n = tl.load(positive_factors_ptr + offs_n)
        positive_g = positive_w_m[:, None] + positive_w_n[None, :]
        lse_n = load_lse(factors_ptr, offs_n, M_pad, SHIFT, ONLINE)
        if INSIDE and not ONLINE:  # one exponential for both
            e = tl.exp2(s - (SPLIT - SHIFT))
            g = e * (w_m[:, None] + w_n[None, :] - tl.where(positive, positive_g, 0.0))
        else:
            g = softmax_gradient(s, w_m, lse_m, w_n, lse_n, SHIFT)
            if INSIDE:
                positive_lse_n = load_lse(positive_factors_ptr, offs_n, M_pad, SHIFT, ONLINE)
                positive_g = softmax_gradient(
                    s, positive_w_m, positive_lse_m, positive_w_n, positive_lse_n, SHIFT
                )
            else:
                positive_g *= 1 / UNSHIFT
            g -= tl.where(positive, positive_g, 0.0)
        acc = add_product(acc, g, b, x_ptr, first_n, first_d, D_pad, BLOCK_N, BLOCK_D, PRECISION)

    store_sum(sum_ptr, acc * UNSHIFT, first_m, first_d, D_pad, BLOCK_M, BLOCK_D)


def _count_positives(labels: Tensor) -> Tensor:
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
            scale, sums, positives, _count_positives(labels), loss, lse, positive_lse,
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
        count = _count_positives(labels)
        grad = torch.where(count > 0, grad_loss, 0.0)
        grad_max = grad_max_of(grad)
        vectors = factors(grad, grad_max, lse, None, M_pad)
        if inside:
            # -inf without a positive, and zero times infinity is NaN
            finite = torch.where(count > 0, positive_lse, 0.0)
            positive_vectors = factors(grad, grad_max, finite, None, M_pad)
        else:
            positive_vectors = vectors[0] / F.pad(count.clamp_min(1), (0, M_pad - M), value=1.0)
        total = z.new_empty(M_pad, D_pad, dtype=torch.float32)
        launches, limit = cases(scale, scale_factor, normalize and M <= MAX_ROWS, D, z.dtype)
        for online in launches:
            case = (online, z.dtype, precision, D_pad)
            chosen = options("heavy", case, family(z.device), narrow=True)
            grid = triton.cdiv(M, chosen["BLOCK_M"]), triton.cdiv(D_pad, chosen["BLOCK_D"])
            sup_con_bwd_kernel[grid](
                x, labels, scale, vectors, positive_vectors, total,
                M, M_pad, D_pad, scale_factor, limit, inside, **chosen,
            )  # fmt: skip
        dz, dscale = finish(z, norm, total, scale, scale_factor, normalize, grad_max, z.dtype)
    return dz, 0.5 * dscale
