"""What the losses share where the rows of other ranks count: one scale, one mean."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sslops.ops._checks import reduce_rows
from sslops.ops._remote import wide
from sslops.parallel import Team, eager

GRADIENTS = "tensors that need a gradient"  # what `wants` counts, for errors


def as_compared(z: Tensor, normalize: bool) -> Tensor:
    """The rows over their norms, in z's dtype, in which they travel."""
    return F.normalize(wide(z), dim=1).to(z.dtype) if normalize else z


def one_scale(scale: Tensor | None, factor: float, like: Tensor) -> Tensor:
    """The product of the two, 0-d on the device of `like`."""
    return wide(like).new_full((), factor) if scale is None else scale * factor


def wants(*tensors: Tensor | None) -> int:
    """A number that says which of the tensors need a gradient."""
    given = [each is not None and each.requires_grad for each in tensors]
    return sum(2**n for n, each in enumerate(given) if each and torch.is_grad_enabled())


def of_no_rows(scale: Tensor | None, *sides: Tensor) -> Tensor:
    """The losses of a rank without rows, [0]: as far as others' a part of the graph."""
    empty = torch.stack([wide(side[:0]).sum(dim=1) for side in sides]).sum(dim=0)
    return empty if scale is None else empty * scale


def reduce_over(
    team: Team | None,
    rows: Tensor,
    weights: Tensor | None,
    reduction: str,
    counted: Tensor | None = None,
) -> Tensor:
    """`reduce_rows` over the rows of all ranks.

    Args:
        team: the ranks; None for this process alone.
        rows: [M], of this rank.
        weights: [M] or None.
        reduction: "mean", "sum" or "none".
        counted: [M] 0 or 1, which rows the mean is over; None for all.
    """
    if team is None and counted is None:
        return reduce_rows(rows, weights, reduction)
    loss = rows if weights is None else rows * weights
    if reduction == "none":
        return loss
    if reduction == "sum":
        return shared_sum(team, loss.sum())
    count = torch.ones_like(rows) if counted is None else counted.to(rows.dtype)
    return shared_mean(team, loss.sum(), (count if weights is None else count * weights).sum())


def shared_sum(team: Team | None, share: Tensor) -> Tensor:
    """Sum over the ranks: its value on all; the gradient of `size` times this rank's share.

    The mean of the gradients over the ranks, which DistributedDataParallel takes, is then that of
    the sum.
    """
    if team is None:
        return share
    own = share * team.size
    return total_of(team, share) + (own - own.detach())


def shared_mean(team: Team | None, share: Tensor, count: Tensor) -> Tensor:
    """Sum of the shares over that of the counts (1 for 0), by the rule of `shared_sum`."""
    if team is None:
        return share / torch.where(count == 0, 1.0, count)
    value, whole = total_of(team, torch.stack([share, count])).unbind()
    whole = torch.where(whole == 0, 1.0, whole)
    mean = value / whole
    own = team.size * (share - mean * count) / whole  # the derivative of the quotient
    return mean + (own - own.detach())


@eager
def total_of(team: Team, tensor: Tensor) -> Tensor:
    """Sum over the ranks, without gradient."""
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=team.group)
    return total


@eager
def total_with_grad(team: Team, tensor: Tensor) -> Tensor:
    """Sum over the ranks; its gradient is the sum of theirs."""
    total: Tensor = _Total.apply(team, tensor)
    return total


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, team: Team, tensor: Tensor) -> Tensor:
        """Sum forwards."""
        ctx.team = team  # type: ignore[attr-defined]
        return total_of(team, tensor)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[None, Tensor]:
        """Sum backwards."""
        return None, total_of(ctx.team, grad)  # type: ignore[attr-defined]
