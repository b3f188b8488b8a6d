"""Rows of this rank against the blocks of all others, differentiable on both sides.

Whatever a loss needs of other ranks is a sum over their rows, so it merges block by block: by
log-add-exp or by addition. A part says what one block gives; the backward pass lets the blocks come
by again, and their gradients travel home to the ranks whose rows they are.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslops._info_nce_args import InfoNCEArgs, InfoNCESaved
from sslops._library import op
from sslops.parallel import Team, eager, visit

FAR = 1e4  # in place of the lse of a row that saw nothing: its weight is zero and must not be NaN
Anchor = Callable[[Tensor, Tensor, "Tensor | None"], tuple[Tensor, "Tensor | None"]]


class Part(Protocol):
    """What blocks of other ranks add to a number per row, or to one number."""

    def start(self, x: Tensor) -> Tensor:
        """The number before any block."""

    def forward(
        self, total: Tensor, x: Tensor, block: Tensor, ids: Tensor | None, scale: Tensor
    ) -> Tensor:
        """`total` and what `block` adds to it."""

    def backward(
        self,
        grad: Tensor,
        total: Tensor,
        x: Tensor,
        block: Tensor,
        ids: Tensor | None,
        scale: Tensor,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients by x, block and scale; `needs` as of the op info_nce_bwd."""


class Lse:
    """Log-sum-exp of each row's logits with what it may see of the blocks: [M].

    info_nce's kernels keep the positive out of the sum, so any row may play it: the lse of the
    negatives is then that of all logits less the positive's share. An anchor much above the
    negatives would leave nothing of them in float32.

    Args:
        anchor: (keys, targets), as of the op info_nce_fwd, for rows, a block and its ids.
        ids: [M] of the rows, or None.
        same_id_only: a row sees only what has its id, instead of all but that.
        stats: keep in `hit` whether each row's anchor is above all it has seen.
    """

    def __init__(
        self,
        anchor: Anchor,
        ids: Tensor | None = None,
        same_id_only: bool = False,
        stats: bool = False,
    ) -> None:
        self.anchor, self.ids, self.same_id_only, self.stats = anchor, ids, same_id_only, stats
        self.hit: Tensor | None = None

    def start(self, x: Tensor) -> Tensor:
        """Nothing was seen."""
        self.hit = torch.ones(len(x), dtype=torch.bool, device=x.device) if self.stats else None
        return wide(x).new_full((len(x),), float("-inf"))

    def forward(
        self, total: Tensor, x: Tensor, block: Tensor, ids: Tensor | None, scale: Tensor
    ) -> Tensor:
        """Merge by log-add-exp."""
        a = self._args(x, block, ids, scale)._replace(stats=self.stats)
        loss, lse, *_, hit, _ = op("info_nce_fwd", x)(*a)
        if self.hit is not None:
            self.hit &= hit
        return torch.logaddexp(total, lse + torch.log(-torch.expm1(-loss)))

    def backward(
        self,
        grad: Tensor,
        total: Tensor,
        x: Tensor,
        block: Tensor,
        ids: Tensor | None,
        scale: Tensor,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The op's own gradient, given the lse over everything; a loss of zero does not pull."""
        a = self._args(x, block, ids, scale)
        lse = torch.where(total == float("-inf"), FAR, total)
        saved = saved_of(torch.zeros_like(grad), lse)
        dx, _, dy, dscale = op("info_nce_bwd", x)(grad, None, *a, *saved, needs)
        return dx, dy, dscale

    def _args(self, x: Tensor, block: Tensor, ids: Tensor | None, scale: Tensor) -> InfoNCEArgs:
        keys, targets = self.anchor(x, block, ids)
        block_ids = None if self.ids is None else ids
        return InfoNCEArgs(
            x, keys, block, targets, self.ids, block_ids, scale=scale,
            same_id_only=self.same_id_only, normalize=False,
        )  # fmt: skip


def saved_of(
    loss: Tensor, lse: Tensor, key_loss: Tensor | None = None, key_lse: Tensor | None = None
) -> InfoNCESaved:
    """What info_nce_fwd would have returned for info_nce_bwd, had it seen all blocks."""
    none = loss.new_empty(0)
    key_loss, key_lse = (none if each is None else each for each in (key_loss, key_lse))
    return InfoNCESaved(loss, lse, key_loss, key_lse, *[none] * 5)


def first_row(x: Tensor, block: Tensor, ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The anchor for rows that see all of a block: any row of it is below the sum."""
    return block[:1], torch.zeros(len(x), dtype=torch.int64, device=x.device)


@eager
def against_others(
    parts: Sequence[Part],
    team: Team,
    rows: list[int],
    x: Tensor,
    y: Tensor,
    ids: Tensor | None,
    scale: Tensor,
) -> tuple[Tensor, ...]:
    """The number of each part, from `x` and the `y` of all other ranks.

    Args:
        parts: what is wanted; they share the journey.
        team: the ranks.
        rows: how many rows `y` has on each.
        x: [M, D], as it is compared.
        y: [N, D], shown to the others; gradients flow back to it.
        ids: [N] int64, shown beside it, or None.
        scale: 0-d, float32 or float64: multiplies all products.
    """
    found: tuple[Tensor, ...] = _AgainstOthers.apply(parts, team, rows, ids, x, y, scale)
    return found


class _AgainstOthers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        parts: Sequence[Part],
        team: Team,
        rows: list[int],
        ids: Tensor | None,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
    ) -> tuple[Tensor, ...]:
        """Merge block by block."""
        totals = [part.start(x) for part in parts]

        def step(packet: tuple[Tensor, ...]) -> None:
            block, block_ids = packet[0], packet[1] if ids is not None else None
            if len(x) and len(block):
                for n, part in enumerate(parts):
                    totals[n] = part.forward(totals[n], x, block, block_ids, scale)

        visit(team, rows, _packet(y, ids), step)
        ctx.parts, ctx.team, ctx.rows, ctx.with_ids = parts, team, rows, ids is not None
        ctx.save_for_backward(x, y, scale, *(() if ids is None else (ids,)), *totals)
        return tuple(totals)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Let the blocks come by again, and send their gradients home."""
        x, y, scale, *totals = ctx.saved_tensors
        ids = totals.pop(0) if ctx.with_ids else None
        *_, want_x, want_y, want_scale = ctx.needs_input_grad
        needs = [want_x or want_scale, False, want_y, want_scale]
        dx, dscale = torch.zeros_like(wide(x)), torch.zeros_like(scale)

        def step(packet: tuple[Tensor, ...]) -> Tensor | None:
            block, block_ids = packet[0], packet[1] if ids is not None else None
            dy = torch.zeros_like(wide(block)) if want_y else None
            if len(x) and len(block):
                for part, grad, total in zip(ctx.parts, grads, totals, strict=True):
                    found = part.backward(grad, total, x, block, block_ids, scale, needs)
                    if needs[0]:
                        dx.add_(found[0])
                        dscale.add_(found[2])
                    if dy is not None:
                        dy.add_(found[1])
            return dy

        home = visit(ctx.team, ctx.rows, _packet(y, ids), step, torch.add if want_y else None)
        return (
            *[None] * 4,
            dx.to(x.dtype) if want_x else None,
            home.to(y.dtype) if home is not None else None,
            dscale if want_scale else None,
        )


def _packet(y: Tensor, ids: Tensor | None) -> tuple[Tensor, ...]:
    return (y.contiguous(),) if ids is None else (y.contiguous(), ids.contiguous())


def wide(tensor: Tensor) -> Tensor:
    """In the dtype of losses and of the sums of gradients."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
