"""Supervised contrastive loss: schemas, fake kernels, autograd, public function."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sslops._library import define, op, register_autograd
from sslops.ops._checks import (
    as_rows,
    check_floating,
    check_reduction,
    common_dtype,
    integer_vector,
    inverse_temperature,
    row_weights,
)
from sslops.ops._group import reduce_over
from sslops.ops._group_sup_con import rows_among_all
from sslops.parallel import Group, checked_by_all, team_of
from sslops.reference import sup_con as _reference

__all__ = ["SupConStats", "sup_con"]


class SupConStats(NamedTuple):
    """Per-row statistics that `sup_con(..., return_stats=True)` returns, detached.

    Attributes:
        loss: [M] float32 (float64 for float64 inputs), before weights; 0 without a positive.
        lse: [M], log-sum-exp of each row's logits without its own.
        has_positive: [M] bool, whether another row carries the row's label.
    """

    loss: Tensor
    lse: Tensor
    has_positive: Tensor


def _fake_fwd(z: Tensor, *args: Any) -> Any:
    inside = args[-2]
    M, dtype = z.shape[0], torch.promote_types(z.dtype, torch.float32)
    return tuple(z.new_empty(n, dtype=dtype) for n in (M, M, M if inside else 0))


def _fake_bwd(grad_loss: Tensor, z: Tensor, labels: Tensor, lse: Tensor, *_: Any) -> Any:
    return z.new_empty(z.shape), lse.new_empty(())


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z, labels, scale, ctx.scale_factor, ctx.inside, ctx.normalize = inputs
    _, lse, positive_lse = output
    ctx.mark_non_differentiable(lse, positive_lse)
    ctx.save_for_backward(z, labels, lse, positive_lse, scale)


def _backward(bwd: Any, ctx: Any, grad: Tensor, *_: Tensor) -> Any:
    *saved, scale = ctx.saved_tensors
    dz, dfactor = bwd(grad, *saved, scale, ctx.scale_factor, ctx.inside, ctx.normalize)
    dscale = None if scale is None else (dfactor * ctx.scale_factor).to(scale.dtype)
    return dz, None, dscale, None, None, None


_SCALE = "Tensor? scale, float scale_factor, bool inside, bool normalize"
define(
    "sup_con_fwd",
    f"(Tensor z, Tensor labels, {_SCALE}) -> (Tensor loss, Tensor lse, Tensor positive_lse)",
    _reference.sup_con_fwd,
    fake=_fake_fwd,
    triton="sup_con.sup_con_fwd",
)
define(
    "sup_con_bwd",
    f"(Tensor grad_loss, Tensor z, Tensor labels, Tensor lse, Tensor positive_lse, {_SCALE}) ->"
    " (Tensor dz, Tensor dscale)",
    _reference.sup_con_bwd,
    fake=_fake_bwd,
    triton="sup_con.sup_con_bwd",
)
register_autograd("sup_con_fwd", "sup_con_bwd", _backward, _setup)


def sup_con(
    z: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    mean: Literal["outside", "inside"] = "outside",
    weights: Tensor | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    normalize: bool = True,
    return_stats: bool = False,
    group: Group = None,
) -> Tensor | tuple[Tensor, SupConStats]:
    r"""Supervised contrastive loss, without ever storing an M x M matrix.

    $$ \ell_i^{out} = -\frac{1}{|P(i)|} \sum_{p \in P(i)} \log p_{ip}, \qquad
       \ell_i^{in} = -\log \frac{1}{|P(i)|} \sum_{p \in P(i)} p_{ip} $$

    $$ p_{ij} = e^{s_{ij}} / \sum_{a \ne i} e^{s_{ia}},\ s_{ij} = \langle x_i, x_j\rangle/\tau $$

    where P(i) are the other rows with row i's label and x the unit rows. Memory is O(M D).

    Args:
        z: [M, D], or [V, B, D], V views of B samples. float16, bfloat16, float32 or float64, any
            strides. Under autocast all but float64 is cast as for a matrix product.
        labels: integers [M], or [B] with [V, B, D]. A negative label matches nothing: its row is
            a negative of all others.
        temperature: tau > 0, a number or a tensor of one element, which then gets a gradient and
            is never read on the host (a non-positive tensor gives NaN, not an error).
        mean: "outside" or "inside" the logarithm.
        weights: [M] or [V, B], multiplies each row's loss; gradients flow into it.
        reduction: "mean" over the rows that have a positive (over the sum of their weights, if
            given), "sum", or "none".
        normalize: False takes the rows as they are (dot products instead of cosines).
        return_stats: also return `SupConStats`.
        group: whose rows count as well, as positives where their label is the same, each rank
            giving its own: `sslops.Gather()`, `sslops.Ring()` or a process group. Ranks may have
            different numbers of rows, none too; docs/scale.md says what is returned and what it
            costs. Default: this process alone.

    Returns:
        float32 scalar, or [M] for "none" (float64 for float64 inputs); with `return_stats` the
        pair (loss, SupConStats). A row without a positive has loss 0 and is no part of the mean;
        if no row has one, the mean is 0.

    Raises:
        TypeError: `z`, `weights` or `temperature` is not floating, `labels` not integer.
        ValueError: wrong shape, fewer than two rows, D = 0, tensors on different devices,
            temperature not positive and finite, unknown `mean` or reduction, ranks of `group`
            that differ in more than their rows.
        RuntimeError: when the gradient is itself differentiated.

    Source:
        Khosla et al. 2020, arXiv:2004.11362, eq. 2 ("outside") and eq. 3 ("inside").

    Example:
        >>> z = torch.randn(8, 16, requires_grad=True)
        >>> loss = sup_con(z, torch.tensor([0, 0, 1, 1, 2, 2, 2, -1]), temperature=0.1)
        >>> loss.backward()
        >>> z.grad.shape
        torch.Size([8, 16])
    """
    name = "sup_con"
    team = team_of(name, group)

    def checked() -> _Checked:
        least = 2 if team is None else 0
        return _check(z, labels, temperature, mean, weights, reduction, least)

    dtype, row_labels, scale, factor, w = checked_by_all(team, name, z, checked)
    flat = as_rows(z.flatten(0, 1) if z.ndim == 3 else z, dtype, normalize)
    args = (flat, row_labels, scale, factor, mean == "inside", normalize)
    if team is None:
        rows, lse, _ = op("sup_con_fwd", flat)(*args)
        has_positive = _has_positive(row_labels)
    else:
        given = {"mean": mean, "reduction": reduction, "normalize": normalize}
        rows, lse, has_positive = rows_among_all(team, *args, given)
    loss = reduce_over(team, rows, w, reduction, has_positive)
    return (loss, SupConStats(rows.detach(), lse, has_positive)) if return_stats else loss


# dtype, labels, scale, factor, weights
_Checked = tuple[torch.dtype, Tensor, Tensor | None, float, Tensor | None]


def _check(
    z: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    mean: str,
    weights: Tensor | None,
    reduction: str,
    least: int,
) -> _Checked:
    name = "sup_con"
    check_floating(name, "z", z)
    check_reduction(name, reduction)
    if mean not in ("outside", "inside"):
        raise ValueError(f"{name}: mean must be outside or inside, got {mean!r}")
    shape = tuple(z.shape)
    if z.ndim not in (2, 3):
        raise ValueError(f"{name}: z must be [M, D] or [V, B, D], got shape {shape}")
    views, samples = (shape[0], shape[1]) if z.ndim == 3 else (1, shape[0])
    M = views * samples
    if least > M or shape[-1] == 0:
        raise ValueError(f"{name}: z must have two rows and one feature, got shape {shape}")
    labels = integer_vector(name, "labels", labels, samples, z).repeat(views)
    dtype = common_dtype(name, z=z)
    scale, factor = inverse_temperature(name, temperature, z, dtype)
    if weights is not None:
        if z.ndim == 3 and isinstance(weights, Tensor) and weights.shape == shape[:2]:
            weights = weights.flatten()
        weights = row_weights(name, weights, M, z, dtype)
    return dtype, labels, scale, factor, weights


def _has_positive(labels: Tensor) -> Tensor:
    """Whether another row carries the row's label, by sorting: [M] bool."""
    ordered, order = labels.sort()
    same = (ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)
    no = same.new_zeros(1)
    found = torch.cat([same, no]) | torch.cat([no, same])
    return torch.empty_like(found).scatter_(0, order, found)
