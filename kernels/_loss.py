"""Losses and hits of rows from their sums and positives."""

import triton
import triton.language as tl

from sslops.kernels._tile import LOG2E, load_partners, load_rows

# Times the sum of a logit's |products|: more than two orders of summation differ by.
TIE = tl.constexpr(2.0**-18)


@triton.jit
def log1p_of_exp(u):
    """log(1 + u) for u in [0, 1] to float32's precision, however small u is."""
    # 2 atanh(t); the hardware's logarithm has no relative precision near 1
    t = u / (2.0 + u)
    q = t * t  # <= 1/9
    series = 1 / 9 + q * (1 / 11 + q * (1 / 13))
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * series)))
    return 2.0 * t * series


@triton.jit
def softplus(d):
    """log(1 + exp(d))."""
    return tl.where(d == d, tl.maximum(d, 0.0), d) + log1p_of_exp(tl.exp2(-tl.abs(d) * LOG2E))


@triton.jit
def one_minus_exp(loss):
    """1 - exp(-loss) for loss >= 0 to float32's precision: one minus a probability near one."""
    x = -tl.minimum(loss, 0.5)
    series = 1.0 + x / 6 * (1.0 + x / 7 * (1.0 + x / 8))
    series = 1.0 + x / 2 * (1.0 + x / 3 * (1.0 + x / 4 * (1.0 + x / 5 * series)))
    return tl.where(loss < 0.5, -x * series, 1.0 - tl.exp2(-loss * LOG2E))


@triton.jit
def positive_logit(
    x_ptr,
    k_ptr,
    targets_ptr,
    rows,
    M,
    N,
    D_pad,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    SIZE: tl.constexpr = False,  # sums of magnitudes instead
):
    """Dot products of rows with their positives, before the scale, NaN without one: [ROWS]."""
    partners = load_partners(targets_ptr, rows, M, N)
    positive = tl.zeros([ROWS], tl.float32)
    for first in range(0, D_pad, COLS):
        cols = first + tl.arange(0, COLS)
        a = load_rows(x_ptr, rows, cols, M, D_pad, D_pad, 1)
        b = load_rows(k_ptr, partners, cols, N, D_pad, D_pad, 1)
        positive += tl.sum(tl.abs(a * b) if SIZE else a * b, axis=1)
    if targets_ptr is not None:
        positive = tl.where(partners < N, positive, float("nan"))
    return positive


@triton.jit
def exceeds_best(
    positive,  # in base 2
    best,
    scale,
    x_ptr,
    k_ptr,
    targets_ptr,
    rows,
    M,
    N,
    D_pad,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Whether a positive that is in no tile exceeds the best negative; an equal row must tie.

    A matrix unit adds the same products in another order, and truncates.
    """
    size = positive_logit(x_ptr, k_ptr, targets_ptr, rows, M, N, D_pad, ROWS, COLS, True)
    return positive > best + TIE * LOG2E * scale * size
