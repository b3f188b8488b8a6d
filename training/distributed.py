"""The processes of a run: set-up under torchrun, seeds, gather with gradient."""

import os
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["World", "gather", "join", "leave", "seed_everything", "wrap"]


@dataclass(frozen=True)
class World:
    """This process among all, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0


def join(device: str = "auto") -> World:
    """Find the device and, when started by torchrun, the other processes.

    Raises:
        ValueError: the device does not exist here.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"train: device must exist on this machine, got {device!r}") from error
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    return World(int(os.environ.get("RANK", "0")), size, place)


def leave() -> None:
    """End the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def wrap(method: nn.Module, world: World) -> nn.Module:
    """DistributedDataParallel over several processes, `method` itself in one."""
    if world.size == 1:
        return method
    if world.device.type == "cuda":
        # Local statistics tell a row which rows share its process: a shortcut for the loss.
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)  # type: ignore[no-untyped-call]
    return nn.parallel.DistributedDataParallel(method)


class _Gather(torch.autograd.Function):
    """all_gather forwards, sum over processes backwards."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        """[...] -> [processes, ...]."""
        parts = [torch.empty_like(z) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, z)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Each process has a gradient for every process's part."""
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]


def gather(z: Tensor, dim: int = 0) -> Tensor:
    """Concatenate `z` of all processes along `dim`; gradients flow back to their process.

    Each process then computes the whole loss; the sum over processes in this backward and the
    mean over processes in DistributedDataParallel cancel, so that the gradient is the one that a
    single process with the whole batch would have.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return z
    parts: Tensor = _Gather.apply(z.contiguous())  # type: ignore[no-untyped-call]
    return torch.cat(parts.unbind(), dim)
