"""The pairwise sigmoid loss on Triton; the [M, N] logits never reach memory.

    x[i], y[j]: queries and keys over max(norm, 1e-12);  s[i, j] = scale * <x[i], y[j]> + bias
    loss     = sum_i softplus(-s[i, i]) + sum_{j != i} softplus(s[i, j])
    dx[i]    = scale * (sum_{j != i} g[i, j] y[j] - p[i] y[i]),  dy likewise
    g[i, j]  = sigmoid(s[i, j]);  p[i] = sigmoid(-s[i, i])
    dbias    = sum_{j != i} g[i, j] - sum_i p[i]

Source: Zhai et al. 2023, arXiv:2303.15343, alg. 1. Derivation: docs/math/sigmoid_loss.md.

No pair needs another, so one walk over the keys gives the loss and dqueries, and one over the
queries dkeys: the same kernel with the sides exchanged. Programs own rows, so there are no atomics.
Pairs that ids leave out have s = -inf. As in info_nce.py, tiles hold negatives only, and the
positives are subtracted in float32 at the end. Reading order: _tile.py, here the kernels,
_finish.py, _config.py, then here the launcher.

Extra memory: both sides padded once, and a float32 copy of each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslops.kernels._architectures import family
from sslops.kernels._config import options
from sslops.kernels._finish import Positives, finish
from sslops.kernels._loss import log1p_of_exp, positive_logit
from sslops.kernels._tile import (
    LOG2E,
    WHOLE_D,
    add_product,
    drop_pairs,
    effective_scale,
    load_or,
    load_whole,
    matmul_precision,
    similarities,
    store_sum,
    unit_rows,
)

POSITIVES_OPTIONS = {"ROWS": 32, "COLS": 64, "num_warps": 4}


@triton.jit
def _shift(bias_ptr, bias_value):
    """The bias in float32; `bias_ptr` may be None."""
    bias = bias_value
    if bias_ptr is not None:
        bias = tl.load(bias_ptr).to(tl.float32)
    return bias


@triton.jit
def _softplus_and_sigmoid(t):
    """(log(1 + exp(t)), its derivative), neither losing digits where t is very negative."""
    u = tl.exp2(-tl.abs(t) * LOG2E)
    return tl.maximum(t, 0.0) + log1p_of_exp(u), tl.where(t >= 0, 1.0, u) / (1.0 + u)


@triton.jit(do_not_specialize=["M", "N"])
def sigmoid_negatives_kernel(
    x_ptr,  # [M_pad, D_pad] rows of this side
    y_ptr,  # [N_pad, D_pad] of the other
    scale_ptr,  # 0-d, or None for 1
    bias_ptr,  # 0-d, or None
    row_ids_ptr,  # [M] or None
    col_ids_ptr,  # [N] or None
    loss_ptr,  # [M_pad] float32, written: loss of a row's negative pairs; or None
    bias_grad_ptr,  # [M_pad] float32, written: sum of their g; or None
    sum_ptr,  # [M_pad, D_pad] float32, written: sum_j g[i, j] y[j]; or None
    M,
    N,
    D_pad,
    scale_factor,
    bias_value,
    WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program owns BLOCK_M rows and BLOCK_D of their features."""
    scale = effective_scale(scale_ptr, scale_factor)
    bias = _shift(bias_ptr, bias_value)
    IDS: tl.constexpr = row_ids_ptr is not None
    GRADS: tl.constexpr = sum_ptr is not None
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    # g <= 1, times 2**15: float16 would lose what is below 2**-24
    FP16_SCALE: tl.constexpr = 2.0**15 if dtype == tl.float16 else 1.0
    first_m, first_d = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_D
    offs_m = first_m + tl.arange(0, BLOCK_M)
    id_m = load_or(row_ids_ptr, offs_m, M, -1)
    a = load_whole(x_ptr, first_m, D_pad, WHOLE, BLOCK_M, BLOCK_K)

    row_loss = tl.zeros([BLOCK_M], tl.float32)
    row_g = row_loss
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first_n in range(0, N, BLOCK_N):
        b = load_whole(y_ptr, first_n, D_pad, WHOLE, BLOCK_N, BLOCK_K)
        s = similarities(
            a, b, x_ptr, y_ptr, first_m, first_n, D_pad, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION
        )
        s = s * scale + bias
        s = drop_pairs(
            s, first_m, first_n, offs_m, None, id_m, col_ids_ptr, M, N, True, False, IDS,
            BLOCK_M, BLOCK_N,
        )  # fmt: skip
        loss, g = _softplus_and_sigmoid(s)
        if loss_ptr is not None:
            row_loss += tl.sum(loss, axis=1)
        if bias_grad_ptr is not None:
            row_g += tl.sum(g, axis=1)
        if GRADS:
            acc = add_product(
                acc, g * FP16_SCALE, b, y_ptr, first_n, first_d, D_pad, BLOCK_N, BLOCK_D, PRECISION
            )

    if loss_ptr is not None:
        tl.store(loss_ptr + offs_m, row_loss)
    if bias_grad_ptr is not None:
        tl.store(bias_grad_ptr + offs_m, row_g)
    if GRADS:
        store_sum(sum_ptr, acc * (1 / FP16_SCALE), first_m, first_d, D_pad, BLOCK_M, BLOCK_D)


@triton.jit(do_not_specialize=["M"])
def sigmoid_positives_kernel(
    x_ptr,  # [M_pad, D_pad]
    y_ptr,  # [N_pad, D_pad]
    scale_ptr,  # 0-d or None
    bias_ptr,  # 0-d or None
    loss_ptr,  # [M] float32, written: of the pair (i, i)
    positive_w_ptr,  # [M] float32, written: minus its g
    M,
    D_pad,
    scale_factor,
    bias_value,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """One program computes the positives of ROWS rows."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    s = positive_logit(x_ptr, y_ptr, None, rows, M, M, D_pad, ROWS, COLS)
    s = s * effective_scale(scale_ptr, scale_factor) + _shift(bias_ptr, bias_value)
    loss, positive_w = _softplus_and_sigmoid(-s)
    tl.store(loss_ptr + rows, loss, mask=rows < M)
    tl.store(positive_w_ptr + rows, positive_w, mask=rows < M)


def sigmoid_loss_fwd(
    queries: Tensor,
    keys: Tensor,
    query_ids: Tensor | None,
    key_ids: Tensor | None,
    scale: Tensor | None,
    scale_factor: float,
    bias: Tensor | None,
    bias_value: float,
    normalize: bool,
    grads: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch both walks; arguments and results as of `sslops.reference.sigmoid_loss`."""
    (M, D), N = queries.shape, len(keys)
    if query_ids is not None and key_ids is not None:
        query_ids, key_ids = query_ids.contiguous(), key_ids.contiguous()
    precision = matmul_precision(queries.dtype, queries.device)

    def empty(*shape: int) -> Tensor:
        return queries.new_empty(shape, dtype=torch.float32)

    with torch.cuda.device_of(queries):
        x, x_norm = unit_rows(queries, normalize, precision)
        y, y_norm = unit_rows(keys, normalize, precision)
        D_pad = x.shape[1]
        numbers = (scale_factor, bias_value)
        positive, positive_w = empty(2, M).unbind()
        sigmoid_positives_kernel[(triton.cdiv(M, POSITIVES_OPTIONS["ROWS"]),)](
            x, y, scale, bias, positive, positive_w, M, D_pad, *numbers, **POSITIVES_OPTIONS
        )
        whole = queries.dtype is not torch.float32 and D <= WHOLE_D
        case = (not whole, queries.dtype, precision, D_pad)
        chosen = options("heavy", case, family(queries.device), narrow=True)
        del chosen["ONLINE"]
        blocks = triton.cdiv(D_pad, chosen["BLOCK_D"]) if grads else 1
        dx, dy = (empty(len(side), D_pad) if grads else None for side in (x, y))
        negative, bias_grad = empty(len(x)), empty(len(x)) if grads else None
        sigmoid_negatives_kernel[(triton.cdiv(M, chosen["BLOCK_M"]), blocks)](
            x, y, scale, bias, query_ids, key_ids, negative, bias_grad, dx,
            M, N, D_pad, *numbers, **chosen,
        )  # fmt: skip
        loss = positive.sum() + negative[:M].sum()
        if bias_grad is None:
            return loss, empty(0), empty(0), empty(0), empty(0)
        sigmoid_negatives_kernel[(triton.cdiv(N, chosen["BLOCK_M"]), blocks)](
            y, x, scale, bias, key_ids, query_ids, None, None, dy,
            N, M, D_pad, *numbers, **chosen,
        )  # fmt: skip
        common = (scale, scale_factor, normalize, None, torch.float32)
        dqueries, dscale = finish(queries, x_norm, dx, *common, Positives(y, N, positive_w, None))
        dkeys, _ = finish(keys, y_norm, dy, *common, Positives(x, M, positive_w, None))
        return loss, dqueries, dkeys, dscale, bias_grad[:M].sum() - positive_w.sum()
