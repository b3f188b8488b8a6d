"""Gather from all processes, with the gradient that one process with the whole batch would have."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["all_gather", "all_gather_with_grad", "rank", "world_size"]


def world_size() -> int:
    """Number of processes; 1 where torch.distributed was not started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process among all; 0 where torch.distributed was not started."""
    return dist.get_rank() if world_size() > 1 else 0


def all_gather(z: Tensor) -> Tensor:
    """Concatenate `z` of all processes along its first dimension, without gradient.

    Args:
        z: the same shape and dtype on every process.
    """
    if world_size() == 1:
        return z.detach()
    return torch.cat(_parts(z.detach()))


def all_gather_with_grad(z: Tensor, dim: int = 0) -> Tensor:
    """Concatenate `z` of all processes along `dim`; gradients flow back to their process.

    Where each process takes the mean over its own rows against everyone's keys, or computes the
    whole loss, the sum over processes in this backward and the mean over processes in
    DistributedDataParallel cancel: the gradient is the one that a single process with the whole
    batch would have.

    Args:
        z: floating, the same shape and dtype on every process.
        dim: along which to concatenate.
    """
    if world_size() == 1:
        return z
    parts: Tensor = _Gather.apply(z)  # type: ignore[no-untyped-call]
    return torch.cat(parts.unbind(), dim)


def _parts(z: Tensor) -> list[Tensor]:
    z = z.contiguous()
    parts = [torch.empty_like(z) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, z)
    return parts


class _Gather(torch.autograd.Function):
    """all_gather forwards, sum over processes backwards."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        """[...] -> [processes, ...]."""
        return torch.stack(_parts(z))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Each process has a gradient for every process's part."""
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]
