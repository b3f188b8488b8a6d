"""Supervised contrastive loss where the rows of other ranks count too, as positives as well."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops._info_nce_args import InfoNCEArgs
from sslops._library import op
from sslops._names import shown
from sslops.ops._group import GRADIENTS, as_compared, one_scale, wants
from sslops.ops._info_nce_op import info_nce_rows
from sslops.ops._remote import Lse, against_others, first_row, wide
from sslops.parallel import Team, agree


def rows_among_all(
    team: Team,
    z: Tensor,
    labels: Tensor,
    scale: Tensor | None,
    factor: float,
    inside: bool,
    normalize: bool,
    given: Mapping[str, bool | str],
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss [M], lse [M], has_positive [M] bool) among the rows of all ranks.

    Args:
        team: the ranks.
        z: [M, D], as of the op sup_con_fwd, like the rest; M may be 0.
        labels: [M] int64.
        scale: 0-d or None.
        factor: see `scale`.
        inside: the mean over the positives inside the logarithm.
        normalize: divide each row by its norm first.
        given: what else must be the same on all ranks, by its name for errors.
    """
    name = "sup_con"
    same = {
        "number of features": z.shape[1], "dtype": z.dtype,
        "kind of temperature": scale is not None, "inverse temperature": factor, **given,
        GRADIENTS: wants(z, scale),
    }  # fmt: skip
    rows = agree(team, name, z, {"rows": len(z)}, same, {"temperature": scale})["rows"]
    if sum(rows) < 2:
        raise ValueError(
            f"{name}: ranks must have two rows together, got {shown(rows)} in rank order"
        )
    x, kappa = as_compared(z, normalize), one_scale(scale, factor, z)

    positives = Lse(_match(labels), labels, same_id_only=True) if inside else LabelSums(labels)
    seen, of_positives, others = against_others(
        [Lse(first_row), positives, Counts(labels)], team, rows, x, x, labels, kappa
    )
    own_lse = _own_lse(x, kappa)
    lse = torch.logaddexp(own_lse, seen)
    own = (Counts(labels).forward(others, x, x, labels, kappa) - others - 1).clamp_min(0)
    count = own + others.detach()
    some = count > 0
    if inside:
        own_positives = _own_positives(x, labels, kappa, own, some, own_lse)
        of_positives = torch.logaddexp(own_positives, of_positives)
        rows_loss = lse - of_positives + count.clamp_min(1).log()
    else:
        itself = torch.where(labels >= 0, wide(x).square().sum(dim=1), 0.0)
        total = label_sums(x, labels, x, labels) - itself + of_positives
        rows_loss = lse - total * kappa / count.clamp_min(1)
    return torch.where(some, rows_loss, 0.0 * kappa), lse.detach(), some


def label_sums(x: Tensor, labels: Tensor, block: Tensor, ids: Tensor) -> Tensor:
    """Sum of each row's products with what has its label in a block: [M]; O((M + N) D)."""
    ordered, order = ids.sort()
    number = F.pad((ordered[1:] != ordered[:-1]).cumsum(dim=0), (1, 0))[: len(ids)]  # of the label
    rows = wide(block).index_select(0, order)
    sums = torch.zeros_like(rows).index_add(0, number, rows)
    place = torch.searchsorted(ordered, labels).clamp_max(len(ids) - 1)
    match = (ordered[place] == labels) & (labels >= 0)
    return torch.where(match, (wide(x) * sums[number[place]]).sum(dim=1), 0.0)


class LabelSums:
    """Sum of each row's products with its positives in the blocks: [M]."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def start(self, x: Tensor) -> Tensor:
        """No positive."""
        return wide(x).new_zeros(len(x))

    def forward(
        self, total: Tensor, x: Tensor, block: Tensor, ids: Tensor | None, scale: Tensor
    ) -> Tensor:
        """Add those of one block."""
        assert ids is not None
        return total + label_sums(x, self.labels, block, ids)

    def backward(self, grad: Tensor, total: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of the other side's rows, by autograd."""
        x, block, ids, *_ = args
        with torch.enable_grad():
            inputs = [wide(each).detach().requires_grad_() for each in (x, block)]
            value = label_sums(inputs[0], self.labels, inputs[1], ids)
            dx, dy = torch.autograd.grad(value, inputs, grad)
        return dx, dy, grad.new_zeros(())


class Counts:
    """How many positives each row has in the blocks: [M], without gradient."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def start(self, x: Tensor) -> Tensor:
        """No positive."""
        return wide(x).new_zeros(len(x))

    def forward(
        self, total: Tensor, x: Tensor, block: Tensor, ids: Tensor | None, scale: Tensor
    ) -> Tensor:
        """Add those of one block."""
        assert ids is not None
        ordered = ids.sort().values
        end = torch.searchsorted(ordered, self.labels, right=True)
        found = end - torch.searchsorted(ordered, self.labels)
        return total + torch.where(self.labels >= 0, found, 0)

    def backward(self, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Counts have none."""
        none = grad.new_zeros(())
        return none, none, none


def _match(labels: Tensor) -> Any:
    """An anchor for rows that see their label alone: a row of the block with that label, if any."""

    def anchor(x: Tensor, block: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        assert ids is not None
        ordered, order = ids.sort()
        place = torch.searchsorted(ordered, labels).clamp_max(len(ids) - 1)
        return block, order[place]

    return anchor


def _own_lse(x: Tensor, kappa: Tensor) -> Tensor:
    """Log-sum-exp of each row's logits with this rank's other rows: [M]."""
    M = len(x)
    if M < 2:
        return wide(x).new_full((M,), float("-inf"))
    own = torch.arange(M, device=x.device)
    following = (own + 1) % M  # the anchor, which is one of the rows that are seen
    loss, _ = info_nce_rows(InfoNCEArgs(x, x, x, following, own, own, scale=kappa, normalize=False))
    positive = (wide(x) * wide(x).index_select(0, following)).sum(dim=1) * kappa
    return positive + loss + torch.log(-torch.expm1(-loss))


def _own_positives(
    x: Tensor, labels: Tensor, kappa: Tensor, own: Tensor, some: Tensor, lse: Tensor
) -> Tensor:
    """Log-sum-exp of each row's logits with its positives on this rank, -inf without one: [M].

    0 for rows without one anywhere, which have no loss but must not have a NaN for a gradient.
    """
    none = torch.where(some, float("-inf"), 0.0).to(lse.dtype)
    if len(x) < 2:
        return none
    loss, _, _ = op("sup_con_fwd", x)(x, labels, kappa, 1.0, True, False)
    return torch.where(own > 0, lse - loss + own.clamp_min(1).log(), none)
