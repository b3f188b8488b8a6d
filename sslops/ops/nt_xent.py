"""NT-Xent loss: schema, kernels per device, fake kernel, autograd, public function."""

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from sslops._library import backend, define, op, register_autograd
from sslops.ops._checks import (
    as_rows,
    check_floating,
    check_reduction,
    check_whole,
    common_dtype,
    inverse_temperature,
)
from sslops.ops._group import of_no_rows, reduce_over
from sslops.ops._group_nt_xent import Rows, against_other_ranks, agree_on_nt_xent
from sslops.ops._nt_xent_ids import rows_without_duplicates, sample_ids
from sslops.parallel import Group, checked_by_all, team_of
from sslops.reference import nt_xent as _reference

__all__ = ["NTXentStats", "nt_xent"]

ONE_ARGUMENT = (
    "nt_xent: all views come in one tensor, got {} arguments; write"
    " nt_xent(torch.stack([z1, z2]), temperature=0.1), or NTXentLoss(0.1)(z1, z2)"
)


class NTXentStats(NamedTuple):
    """Per-row statistics that `nt_xent(..., return_stats=True)` returns beside the loss.

    Attributes:
        loss: [M] float32 (float64 for float64 inputs), each row's loss before weights; detached.
        lse: [M], log-sum-exp of each row's logits without its own; detached.
        hit: [M] bool, whether the row's best positive is above every negative.
    """

    loss: Tensor
    lse: Tensor
    hit: Tensor


def _fake_fwd(
    z: Tensor,
    scale: Tensor | None,
    scale_factor: float,
    num_views: int,
    normalize: bool,
    stats: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    M = z.shape[0]
    dtype = torch.promote_types(z.dtype, torch.float32)
    hit = z.new_empty(M if stats else 0, dtype=torch.bool)
    return z.new_empty(M, dtype=dtype), z.new_empty(M, dtype=dtype), hit


def _fake_bwd(
    grad_loss: Tensor,
    z: Tensor,
    lse: Tensor,
    scale: Tensor | None,
    scale_factor: float,
    num_views: int,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), lse.new_empty(())


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    z, scale, ctx.scale_factor, ctx.num_views, ctx.normalize, _ = inputs
    _, lse, hit = output
    ctx.mark_non_differentiable(lse, hit)
    ctx.save_for_backward(z, lse, *(() if scale is None else (scale,)))


def _backward(bwd: Any, ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    z, lse, *rest = ctx.saved_tensors
    scale = rest[0] if rest else None
    dz, dfactor = bwd(grad_loss, z, lse, scale, ctx.scale_factor, ctx.num_views, ctx.normalize)
    dscale = None if scale is None else (dfactor * ctx.scale_factor).to(scale.dtype)
    return dz, dscale, None, None, None, None


define(
    "nt_xent_fwd",
    "(Tensor z, Tensor? scale, float scale_factor, int num_views, bool normalize, bool stats)"
    " -> (Tensor loss, Tensor lse, Tensor hit)",
    _reference.nt_xent_fwd,
    fake=_fake_fwd,
    triton="nt_xent.nt_xent_fwd",
)
define(
    "nt_xent_bwd",
    "(Tensor grad_loss, Tensor z, Tensor lse, Tensor? scale, float scale_factor, int num_views,"
    " bool normalize) -> (Tensor dz, Tensor dscale)",
    _reference.nt_xent_bwd,
    fake=_fake_bwd,
    triton="nt_xent.nt_xent_bwd",
)
register_autograd("nt_xent_fwd", "nt_xent_bwd", _backward, _setup_context)


@overload
def nt_xent(
    z: Tensor,
    *,
    num_views: int | None = ...,
    temperature: float | Tensor = ...,
    ids: Tensor | None = ...,
    weights: Tensor | None = ...,
    reduction: Literal["none", "mean", "sum"] = ...,
    normalize: bool = ...,
    return_stats: Literal[False] = ...,
    group: Group = ...,
) -> Tensor: ...


@overload
def nt_xent(
    z: Tensor,
    *,
    num_views: int | None = ...,
    temperature: float | Tensor = ...,
    ids: Tensor | None = ...,
    weights: Tensor | None = ...,
    reduction: Literal["none", "mean", "sum"] = ...,
    normalize: bool = ...,
    return_stats: bool,
    group: Group = ...,
) -> Tensor | tuple[Tensor, NTXentStats]: ...


def nt_xent(
    z: Tensor,
    *_more: Any,
    num_views: int | None = None,
    temperature: float | Tensor = 0.1,
    ids: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    normalize: bool = True,
    return_stats: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, NTXentStats]:
    r"""NT-Xent, the loss of SimCLR, without ever storing the M x M similarities.

    $$ \ell_i = \log \sum_{j \ne i} e^{\langle x_i, x_j\rangle / \tau}
       - \frac{1}{V-1} \sum_{p \in P(i)} \langle x_i, x_p\rangle / \tau,
       \qquad x = z / \max(\lVert z \rVert, 10^{-12}) $$

    where P(i) are the other V - 1 views of row i's sample; with two views this is SimCLR's
    equation 1. Memory is O(M D) in both passes; results are the same bits on every run with the
    same number of threads.

    Args:
        z: [V, B, D], V views of B samples; or [M, D] with M = V * B, view after view (row
            v * B + b). float16, bfloat16, float32 or float64, any strides. Under autocast all but
            float64 is cast as for a matrix product; the normalisation and all sums stay in float32.
        num_views: V >= 2 for [M, D]; default 2. For [V, B, D] it must agree if given.
        temperature: tau > 0, a number or a tensor of one element, which then gets a gradient and
            is never read on the host (a non-positive tensor gives NaN, not an error).
        ids: [B] integers, or [M] with the same one for all views of a sample. Samples of equal
            ids are left out of each other's negatives (known duplicates), the positives stay. -1
            matches nothing.
        weights: [M] or [V, B], multiplies each row's loss; gradients flow into it. "mean" then
            divides by the sum of the weights.
        reduction: "mean" or "sum" over the rows, or "none".
        normalize: False takes the rows as they are (dot products instead of cosines).
        return_stats: also return `NTXentStats`.
        group: whose samples are negatives as well, each rank giving its own: `sslops.Gather()`,
            `sslops.Ring()` or a process group. Ranks may have different numbers of samples, none
            too; docs/scale.md says what is returned and what it costs. Default: this process alone.

    Returns:
        float32 scalar, or [M] for "none" (float64 for float64 inputs); with `return_stats` the
        pair (loss, NTXentStats). A NaN or infinite element of `z` makes every row's loss NaN, as
        in plain PyTorch; a zero row is kept zero, as by `torch.nn.functional.normalize`.

    Raises:
        TypeError: `z`, `weights` or `temperature` is not of a floating dtype listed above, `ids`
            not of an integer one.
        ValueError: wrong shape, fewer than two rows or views, D = 0, rows not divisible by
            `num_views`, tensors on different devices, ids that differ between the views of a
            sample (CPU; elsewhere the first view's count), temperature not positive and finite,
            unknown reduction, ranks of `group` that differ in more than their rows.
        RuntimeError: when the gradient is itself differentiated.

    Source:
        Chen et al. 2020, arXiv:2002.05709, eq. 1 and algorithm 1; for more than two views the
        mean over positives outside the logarithm, Khosla et al. 2020, arXiv:2004.11362, eq. 2.

    Example:
        >>> z = torch.randn(2, 8, 16, requires_grad=True)  # two views of eight samples
        >>> loss, stats = nt_xent(z, temperature=0.5, return_stats=True)
        >>> loss.backward()
        >>> z.grad.shape, stats.hit.shape
        (torch.Size([2, 8, 16]), torch.Size([16]))
    """
    name = "nt_xent"
    team = team_of(name, group)

    def checked() -> _Checked:
        if _more:
            raise TypeError(ONE_ARGUMENT.format(1 + len(_more)))
        check_floating(name, "z", z)
        check_reduction(name, reduction)
        views = _check_shape(z, num_views, 1 if team is None else 0)
        dtype = common_dtype(name, z=z)
        scale, factor = inverse_temperature(name, temperature, z, dtype)
        rows = z.flatten(0, 1) if z.ndim == 3 else z  # [M, D]
        w = None if weights is None else _check_weights(weights, rows, views, dtype)
        known = None if ids is None else sample_ids(ids, views, rows)
        return dtype, views, scale, factor, w, known

    dtype, V, scale, factor, row_weights, known = checked_by_all(team, name, z, checked)
    flat = as_rows(z.flatten(0, 1) if z.ndim == 3 else z, dtype, normalize)
    args = (flat, known, V, scale, factor, normalize, return_stats)
    if team is None:
        rows, lse, hit = _rows(*args, reduction != "none", row_weights)
    else:
        given = (reduction, normalize, known is not None, return_stats)
        sizes = agree_on_nt_xent(team, flat, V, scale, factor, given)
        rows, lse, hit = against_other_ranks(_rows(*args), team, sizes, *args)
    loss = reduce_over(team, rows, row_weights, reduction)
    return (loss, NTXentStats(rows.detach(), lse, hit)) if return_stats else loss


# dtype, num_views, scale, factor, weights, ids
_Checked = tuple[torch.dtype, int, Tensor | None, float, Tensor | None, Tensor | None]


def _rows(
    z: Tensor,
    ids: Tensor | None,
    num_views: int,
    scale: Tensor | None,
    factor: float,
    normalize: bool,
    stats: bool,
    reduced: bool = False,
    row_weights: Tensor | None = None,
) -> Rows:
    """(loss [M], lse [M], hit) among the samples of this process; the last two as for info_nce."""
    if not len(z):
        none = of_no_rows(scale, z)
        return none, none.detach(), none > 0
    if ids is None and backend() == "cuda":  # whose kernels know no views, but ids
        ids = torch.arange(len(z) // num_views, device=z.device)
    if ids is not None:
        args = (z, ids, num_views, scale, factor, normalize, stats)
        return rows_without_duplicates(*args, reduced, row_weights)
    found: Rows = op("nt_xent_fwd", z)(z, scale, factor, num_views, normalize, stats)
    return found


def _check_shape(z: Tensor, num_views: int | None, least: int) -> int:
    shape = tuple(z.shape)
    if z.ndim not in (2, 3):
        raise ValueError(f"nt_xent: z must be [V, B, D] or [M, D], got shape {shape}")
    if num_views is None:
        num_views = shape[0] if z.ndim == 3 else 2
    else:
        check_whole("nt_xent", "num_views", num_views)
    if z.ndim == 3 and num_views != shape[0]:
        raise ValueError(f"nt_xent: z [V, B, D] must have V = num_views = {num_views}, got {shape}")
    if num_views < 2:
        raise ValueError(
            f"nt_xent: num_views must be at least 2, got {num_views} for shape {shape}"
        )
    if shape[-1] == 0 or z[..., 0].numel() < least:
        raise ValueError(
            f"nt_xent: z must have at least one row and one feature, got shape {shape}"
        )
    if z.ndim == 2 and shape[0] % num_views:
        raise ValueError(
            f"nt_xent: the rows of z must be num_views = {num_views} views of each sample, got"
            f" M = {shape[0]}, not a multiple"
        )
    return num_views


def _check_weights(weights: Tensor, z: Tensor, num_views: int, dtype: torch.dtype) -> Tensor:
    check_floating("nt_xent", "weights", weights)
    M = z.shape[0]
    if tuple(weights.shape) not in ((M,), (num_views, M // num_views)):
        raise ValueError(
            f"nt_xent: weights must be [M] or [V, B] with M = {M}, V = {num_views}, got shape"
            f" {tuple(weights.shape)}"
        )
    if weights.device != z.device:
        raise ValueError(
            f"nt_xent: weights must be on the device of z, got {weights.device} and {z.device}"
        )
    # sums of weights in half precision would be rounded, or infinite
    return weights.reshape(M).to(torch.promote_types(dtype, torch.float32))
