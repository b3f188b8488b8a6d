"""Both directions of this rank's rows with the blocks of all others, from the same tiles.

The log-sum-exps of a block's own rows travel with it: every rank adds its columns, until the block
is back home.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslops._info_nce_args import InfoNCEArgs
from sslops._library import op
from sslops.ops._remote import Lse, first_row, saved_of, wide
from sslops.parallel import Team, eager, visit


@eager
def pairs_with_others(
    team: Team, rows: list[int], x: Tensor, y: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """(lse [N] of x with all y of other ranks, lse [N] of y with all x of other ranks).

    Where two ranks have as many rows as each other both come from one pass over the tiles, else
    from one pass each.

    Args:
        team: the ranks.
        rows: how many pairs each has.
        x: [N, D], as it is compared.
        y: [N, D]; this side travels.
        scale: 0-d, float32 or float64: multiplies all products.
    """
    found: tuple[Tensor, Tensor] = _PairsWithOthers.apply(team, rows, x, y, scale)
    return found


class _PairsWithOthers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, team: Team, rows: list[int], x: Tensor, y: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows are merged here, columns on the way home."""
        total = wide(x).new_full((len(x),), float("-inf"))

        def step(packet: tuple[Tensor, ...]) -> Tensor:
            nonlocal total
            (block,) = packet
            columns = total.new_full((len(block),), float("-inf"))
            if not len(x) or not len(block):
                return columns
            if len(x) == len(block):
                # lse and key_lse hold the diagonal, which is the positive of this rank alone
                a = InfoNCEArgs(x, block, scale=scale, symmetric=True, normalize=False)
                found: tuple[Tensor, ...] = op("info_nce_fwd", x)(*a)
                total = torch.logaddexp(total, found[1])
                return found[3]
            one_way = Lse(first_row)
            total = one_way.forward(total, x, block, None, scale)
            return one_way.forward(columns, block, x, None, scale)

        home = visit(team, rows, (y.contiguous(),), step, torch.logaddexp)
        assert home is not None
        ctx.team, ctx.rows = team, rows
        ctx.save_for_backward(x, y, scale, total, home)
        return total, home

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_home: Tensor) -> Any:
        """A block comes by with its log-sum-exps and their gradients; its own travels home."""
        x, y, scale, total, home = ctx.saved_tensors
        *_, want_x, want_y, want_scale = ctx.needs_input_grad
        dx, dscale = torch.zeros_like(wide(x)), torch.zeros_like(scale)

        def step(packet: tuple[Tensor, ...]) -> Tensor | None:
            block, lse, w = packet
            dy = torch.zeros_like(wide(block)) if want_y else None
            if not len(x) or not len(block):
                return dy
            if len(x) == len(block):
                diagonal = (wide(x) * wide(block)).sum(dim=1) * scale
                # a loss that pulls with the diagonal's own probability
                row_loss, column_loss = (
                    -torch.log1p((diagonal - each).exp()) for each in (total, lse)
                )
                a = InfoNCEArgs(x, block, scale=scale, symmetric=True, normalize=False)
                saved = saved_of(row_loss, total, column_loss, lse)
                needs = [want_x or want_scale, want_y, False, want_scale]
                back = op("info_nce_bwd", x)(grad, w, *a, *saved, needs)
                gradients = [(back[0], back[1], back[3])]
            else:
                needs = [True, False, True, True]
                one_way = Lse(first_row)
                one = one_way.backward(grad, total, x, block, None, scale, needs)
                two = one_way.backward(w, lse, block, x, None, scale, needs)
                gradients = [one, (two[1], two[0], two[2])]
            for of_x, of_block, of_scale in gradients:
                if want_x:
                    dx.add_(of_x)
                if dy is not None:
                    dy.add_(of_block)
                if want_scale:
                    dscale.add_(of_scale)
            return dy

        packet = (y.contiguous(), home.contiguous(), grad_home.contiguous())
        back = visit(ctx.team, ctx.rows, packet, step, torch.add if want_y else None)
        return (
            None,
            None,
            dx.to(x.dtype) if want_x else None,
            back.to(y.dtype) if back is not None else None,
            dscale if want_scale else None,
        )
