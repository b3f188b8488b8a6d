"""How the blocks of all other ranks come by, one after another, and what they carry home.

A packet is what a rank shows of itself, tensors with one row for each of its rows. `step` sees the
packet of every other rank once, and may return what is to be carried home to that rank, where
`merge` has put together what all ranks found.

Gather: one all_gather of the packets, and one all_to_all home.
Ring: in step k rank r has the packet of rank r - k. It is sent on, and the next received, while
`step` looks at it; what is carried follows one step behind, when `step` has added to it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sslops.parallel.team import Team

Packet = tuple[Tensor, ...]
Step = Callable[[Packet], Tensor | None]
Merge = Callable[[Tensor, Tensor], Tensor]

PACKET, CARRIED = 1, 2  # tags: the two streams of a ring must not be mixed up


def visit(
    team: Team, rows: Sequence[int], packet: Packet, step: Step, merge: Merge | None = None
) -> Tensor | None:
    """Show `packet` to all other ranks and `step` the packets of theirs.

    Args:
        team: the ranks.
        rows: how many rows each rank's packet has.
        packet: contiguous tensors [rows[rank], ...], of the same dtypes and other sizes everywhere.
        step: what to do with a packet of another rank, which must not keep it.
        merge: of what two ranks found for one packet; None if `step` returns nothing.

    Returns:
        what the others found for this rank's packet, merged; None without `merge`.
    """
    return (_ring if team.ring else _gather)(team, rows, packet, step, merge)


def _gather(
    team: Team, rows: Sequence[int], packet: Packet, step: Step, merge: Merge | None
) -> Tensor | None:
    parts = [_all_rows(team, rows, each) for each in packet]
    found: Tensor | None = None  # one part after another, in rank order
    sizes = [0 if rank == team.rank else size for rank, size in enumerate(rows)]
    for rank in range(team.size):
        if rank == team.rank:
            continue
        one = step(tuple(part[rank] for part in parts))
        if one is not None:
            if found is None:
                found = one.new_empty(sum(sizes), *one.shape[1:])
            found[sum(sizes[:rank]) : sum(sizes[: rank + 1])] = one
        del one
    del parts
    if merge is None or found is None:
        return None
    own = rows[team.rank]
    back = [0 if rank == team.rank else own for rank in range(team.size)]
    received = found.new_empty(sum(back), *found.shape[1:])
    dist.all_to_all_single(received, found, back, sizes, group=team.group)
    total, *rest = torch.split(received, [own] * (team.size - 1))
    for each in rest:
        total = merge(total, each)
    return total


def _all_rows(team: Team, rows: Sequence[int], tensor: Tensor) -> list[Tensor]:
    """`tensor` of each rank; short ones are filled up on the way, as all_gather wants."""
    padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in rows]
    dist.all_gather(parts, padded, group=team.group)
    return [part[:size] for part, size in zip(parts, rows, strict=True)]


def _ring(
    team: Team, rows: Sequence[int], packet: Packet, step: Step, merge: Merge | None
) -> Tensor | None:
    last = team.size - 1
    carried: _Transfer | None = None
    moving = _Transfer(team, rows[team.rank - 1], packet, PACKET)
    for k in range(1, team.size):
        block = moving.received()
        if k < last:
            moving = _Transfer(team, rows[team.rank - k - 1], block, PACKET)
        found = step(block)
        if merge is None or found is None:
            continue
        if carried is not None:
            (before,) = carried.received()
            found = merge(before, found)
        # what the left neighbour has just carried belongs to the block that comes next
        carried = _Transfer(team, rows[team.rank - k - 1], (found,), CARRIED)
    if carried is None:
        return None
    (home,) = carried.received()
    return home


class _Transfer:
    """Tensors on their way to the right neighbour while others come from the left."""

    def __init__(self, team: Team, rows: int, sent: Packet, tag: int) -> None:
        self._sent = sent  # must live until it has arrived
        self._new = tuple(each.new_empty(rows, *each.shape[1:]) for each in sent)
        right, left = (team.rank + 1) % team.size, (team.rank - 1) % team.size
        ops = [*_ops(dist.isend, sent, team, right, tag)]
        ops += _ops(dist.irecv, self._new, team, left, tag)
        self._requests = dist.batch_isend_irecv(ops) if ops else []

    def received(self) -> Packet:
        for request in self._requests:
            request.wait()
        self._sent = ()
        return self._new


def _ops(kind: Any, tensors: Packet, team: Team, peer: int, tag: int) -> "Iterator[dist.P2POp]":
    for n, tensor in enumerate(tensors):
        if tensor.numel():  # both sides know the sizes: nothing is sent for nothing
            yield dist.P2POp(kind, tensor, group=team.group, tag=4 * n + tag, group_peer=peer)
