"""Common steps of the backward passes: vectors of rows before the tiles, dz after them.

w is divided by max |w| (`grad_max`), and dz multiplied by it at the very end, so a loss scaler's
65536 cannot overflow float16, nor 1 / M vanish in it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sslops.kernels._loss import one_minus_exp
from sslops.kernels._tile import EPS, LOG2E, SPLIT, effective_scale, load_partners, load_rows

FACTORS_OPTIONS = {"ROWS": 128, "num_warps": 4}
FINISH_OPTIONS = {"ROWS": 16, "COLS": 64, "num_warps": 4}


@triton.jit(do_not_specialize=["M", "stride_g"])
def factors_kernel(
    grad_ptr,  # [M] upstream gradient w of the losses
    grad_max_ptr,  # 0-d float32: max |grad|
    lse_ptr,  # [M] float32
    loss_ptr,  # [M] float32 or None
    factors_ptr,  # [3 or 4, M_pad] float32, written: w / grad_max, base-2 lse,
    # exp2(SPLIT - lse) w / grad_max; with a loss (1 - exp(-loss)) w / grad_max, of the positives
    M,
    M_pad,
    stride_g,
    ROWS: tl.constexpr,
):
    """Vectors that every tile of the backward pass needs; zero past M."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    grad_max = tl.load(grad_max_ptr)
    w = tl.load(grad_ptr + rows.to(tl.int64) * stride_g, mask=rows < M, other=0.0).to(tl.float32)
    w = tl.where(grad_max > 0, tl.div_rn(w, tl.where(grad_max > 0, grad_max, 1.0)), w)
    lse = tl.load(lse_ptr + rows, mask=rows < M, other=0.0) * LOG2E
    out = factors_ptr + rows
    tl.store(out, w)
    tl.store(out + M_pad, lse)
    tl.store(out + 2 * tl.cast(M_pad, tl.int64), w * tl.exp2(-(lse - SPLIT)))
    if loss_ptr is not None:
        loss = tl.load(loss_ptr + rows, mask=rows < M, other=0.0)
        tl.store(out + 3 * tl.cast(M_pad, tl.int64), w * one_minus_exp(loss))


@triton.jit
def _row_gradient(
    sum_ptr,
    other_ptr,
    positive_w_ptr,
    index_ptr,
    starts_ptr,
    rows,
    cols,
    M,
    N,
    samples,
    num_views,
    D_pad,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Gradient of unit rows over (scale * grad_max), the positives subtracted: [ROWS, COLS]."""
    dx = tl.zeros([ROWS, COLS], tl.float32)
    if sum_ptr is not None:
        dx = load_rows(sum_ptr, rows, cols, M, D_pad, D_pad, 1)
    if num_views is not None:
        w = tl.load(positive_w_ptr + rows)
        for view in range(1, num_views):
            partner = rows + view * samples
            partner -= tl.where(partner >= M, M, 0)
            both = (w + tl.load(positive_w_ptr + partner)) / (num_views - 1)
            dx -= both[:, None] * load_rows(other_ptr, partner, cols, N, D_pad, D_pad, 1)
    elif starts_ptr is not None:
        first = tl.load(starts_ptr + rows, mask=rows < M, other=0)
        count = tl.load(starts_ptr + rows + 1, mask=rows < M, other=0) - first
        for n in range(0, tl.max(count, axis=0)):
            partner = tl.load(index_ptr + first + n, mask=n < count, other=N)
            w = tl.load(positive_w_ptr + partner, mask=n < count, other=0.0)
            dx -= w[:, None] * load_rows(other_ptr, partner, cols, N, D_pad, D_pad, 1)
    elif other_ptr is not None:
        partner = load_partners(index_ptr, rows, M, N)
        # positive_w has one entry for each positive pair: min(M, N) of them
        w = tl.load(positive_w_ptr + rows, mask=(rows < M) & (partner < N), other=0.0)
        dx -= w[:, None] * load_rows(other_ptr, partner, cols, N, D_pad, D_pad, 1)
    return dx


@triton.jit(do_not_specialize=["M", "N", "D", "samples", "num_views"])
def finish_kernel(
    sum_ptr,  # [M_pad, D_pad] float32: sum over the tiles; or None for zero
    other_ptr,  # [N_pad, D_pad] unit rows of the other side; None if the tiles have the positives
    positive_w_ptr,  # float32: minus the gradient of each positive logit, over grad_max; or None
    index_ptr,  # [M] each row's partner, None for row i's i; with starts, partners ordered by row
    starts_ptr,  # [M + 1] where a row's partners start in index, or None
    norm_ptr,  # [M_pad] float32
    z_ptr,  # [M, D], any strides
    scale_ptr,  # 0-d or None
    grad_max_ptr,  # 0-d float32, or None for 1
    dz_ptr,  # [M, D] contiguous, written
    dscale_ptr,  # [programs] float32, written: this program's part of sum <x, dx / scale>
    M,
    N,
    D,
    samples,  # M / num_views: row i's partners are the rows of the same i % samples; or None
    num_views,  # or None
    D_pad,
    stride_zm,
    stride_zd,
    scale_factor,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """One program turns ROWS rows of sums into dz, through the normalisation."""
    scale = effective_scale(scale_ptr, scale_factor)
    grad_max = 1.0
    if grad_max_ptr is not None:
        grad_max = tl.load(grad_max_ptr)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    norm = tl.load(norm_ptr + rows)
    length = tl.maximum(norm, EPS)[:, None]
    dot_x = tl.zeros([ROWS], tl.float32)  # <dx, x> / (scale * grad_max)
    for first in range(0, D, COLS):
        cols = first + tl.arange(0, COLS)
        dx = _row_gradient(
            sum_ptr, other_ptr, positive_w_ptr, index_ptr, starts_ptr, rows, cols, M, N, samples,
            num_views, D_pad, ROWS, COLS,
        )  # fmt: skip
        # z, not the rounded x: the projection of a 16-bit row would be off by its length
        x = load_rows(z_ptr, rows, cols, M, D, stride_zm, stride_zd)
        dot_x += tl.sum(dx * tl.div_rn(x, length), axis=1)
    dscale = tl.sum(tl.where(rows < M, dot_x, 0.0), axis=0) * grad_max
    tl.store(dscale_ptr + tl.program_id(0), dscale)

    dot_x = tl.where(norm < EPS, 0.0, dot_x)
    for first in range(0, D, COLS):
        cols = first + tl.arange(0, COLS)
        dx = _row_gradient(
            sum_ptr, other_ptr, positive_w_ptr, index_ptr, starts_ptr, rows, cols, M, N, samples,
            num_views, D_pad, ROWS, COLS,
        )  # fmt: skip
        if NORMALIZE:
            x = load_rows(z_ptr, rows, cols, M, D, stride_zm, stride_zd)
            dx = tl.div_rn(dx - dot_x[:, None] * tl.div_rn(x, length), length)
        ptrs = dz_ptr + rows.to(tl.int64)[:, None] * D + cols[None, :]
        mask = (rows < M)[:, None] & (cols < D)[None, :]
        tl.store(ptrs, (dx * (scale * grad_max)).to(dz_ptr.dtype.element_ty), mask=mask)


class Positives(NamedTuple):
    """The positives of rows, on the other side."""

    other: Tensor  # [N_pad, D_pad] unit rows of the other side
    columns: int  # N
    weight: Tensor  # float32: minus the gradient of each positive logit, over grad_max
    partners: (
        Tensor | None
    )  # [M] each row's partner, None for row i's i; with starts see `segments`
    starts: Tensor | None = None  # [M + 1]
    num_views: int | None = None  # then weight is [M_pad]


def grad_max_of(grad: Tensor) -> Tensor:
    """Max |grad|, 0-d float32."""
    grad_max: Tensor = torch.linalg.vector_norm(grad, float("inf"), dtype=torch.float32)
    return grad_max


def factors(grad: Tensor, grad_max: Tensor, lse: Tensor, loss: Tensor | None, M_pad: int) -> Tensor:
    """Launch `factors_kernel`: [3, M_pad], or [4, M_pad] with a loss."""
    out = lse.new_empty(3 if loss is None else 4, M_pad)
    factors_kernel[(M_pad // FACTORS_OPTIONS["ROWS"],)](
        grad, grad_max, lse.contiguous(), None if loss is None else loss.contiguous(), out,
        len(lse), M_pad, grad.stride(0), **FACTORS_OPTIONS,
    )  # fmt: skip
    return out


def finish(
    z: Tensor,
    norm: Tensor,
    total: Tensor | None,
    scale: Tensor | None,
    scale_factor: float,
    normalize: bool,
    grad_max: Tensor | None,
    dtype: torch.dtype,
    positives: Positives | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch `finish_kernel`: (dz [M, D] in `dtype`, 0-d gradient of the scale through these rows).

    Args:
        z: [M, D], as the op got it.
        norm: [M_pad], of `unit_rows`.
        total: [M_pad, D_pad] float32, sum over the tiles, or None for zero.
        scale: 0-d or None.
        scale_factor: see `scale`.
        normalize: whether the rows were divided by their norms.
        grad_max: 0-d, or None for 1.
        dtype: of the result.
        positives: the positives, or None if the tiles have them; not None without `total`.
    """
    M, D = z.shape
    dz = z.new_empty(M, D, dtype=dtype)
    programs = triton.cdiv(M, FINISH_OPTIONS["ROWS"])
    dscale = z.new_empty(programs, dtype=torch.float32)
    other, N, weight, index, starts, num_views = positives or (None, 0, None, None, None, None)
    samples = None if num_views is None else M // num_views
    D_pad = next(t.shape[1] for t in (total, other) if t is not None)
    finish_kernel[(programs,)](
        total, other, weight, index, starts, norm, z, scale, grad_max, dz, dscale,
        M, N, D, samples, num_views, D_pad, *z.stride(), scale_factor, normalize, **FINISH_OPTIONS,
    )  # fmt: skip
    return dz, dscale.sum()


def segments(targets: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """(rows ordered by their target, where each of the N targets starts among them)."""
    ordered, rows = targets.sort(stable=True)
    return rows, torch.searchsorted(ordered, torch.arange(N + 1, device=targets.device))
