"""Which processes compare their rows with each other, and by which way."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, Union, cast

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Gather:
    """As `group=` of a loss: the rows of all ranks lie on each while it compares them.

    The fewest messages. Memory grows with the number of ranks.

    Args:
        group: the ranks; None for all processes, looked up when the loss is called. Where
            torch.distributed was not started, or for a group of one, a process is alone.
    """

    group: "ProcessGroup | None" = None


@dataclass(frozen=True)
class Ring:
    """As `group=` of a loss: the blocks go round, each rank holds one and receives the next.

    Memory does not grow with the number of ranks, and the next block travels while the last one
    is compared.

    Args:
        group: see `Gather`.

    Example:
        >>> from sslops import nt_xent
        >>> nt_xent(torch.randn(2, 8, 16), group=Ring()).shape  # one process: alone
        torch.Size([])
    """

    group: "ProcessGroup | None" = None


F = TypeVar("F", bound=Callable[..., object])
Group = Union["ProcessGroup", Gather, Ring, None]


@dataclass(frozen=True)
class Team:
    """The ranks of one call: where this process is among them, and how blocks reach it."""

    group: "ProcessGroup | None"
    rank: int
    size: int
    ring: bool


def team_of(op: str, group: Group) -> Team | None:
    """The ranks that `group` stands for; None where this process is alone.

    Args:
        op: name of the loss, for errors.
        group: a process group is gathered over.

    Raises:
        TypeError: not a group.
        ValueError: a group that this process is no part of.
    """
    if group is None:
        return None
    started = dist.is_available() and dist.is_initialized()
    if isinstance(group, (Gather, Ring)):
        inner = group.group
        if inner is None and not started:
            return None
        if inner is not None and not (started and isinstance(inner, dist.ProcessGroup)):
            raise TypeError(
                f"{op}: {type(group).__name__} takes a process group or None, got"
                f" {type(inner).__name__}"
            )
    elif started and isinstance(group, dist.ProcessGroup):
        inner = group
    else:
        raise TypeError(
            f"{op}: group must be a process group, Gather, Ring or None, got {type(group).__name__}"
        )
    rank = dist.get_rank(inner)
    if rank < 0:
        raise ValueError(f"{op}: group must hold this process, got one without it")
    size = dist.get_world_size(inner)
    return Team(inner, rank, size, isinstance(group, Ring)) if size > 1 else None


def eager(function: F) -> F:
    """Keep what talks to other ranks out of compiled graphs, which break there."""
    # torch.compiler.disable, without its import of all of torch._dynamo at this moment
    return cast(F, torch._disable_dynamo(function))  # type: ignore[attr-defined]
