"""The processes of a run: set-up under torchrun, seeds."""

import os
import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

__all__ = ["World", "join", "leave", "main_value", "seed_everything", "wrap"]


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


def main_value(value: float, world: World) -> float:
    """The main process's `value`, on every process."""
    if world.size == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=world.device)
    dist.broadcast(shared, 0)
    return float(shared)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def wrap(method: nn.Module, world: World) -> nn.Module:
    """DistributedDataParallel over several processes, `method` itself in one."""
    if world.size == 1:
        return method
    local = getattr(method, "local_bn", False)
    if world.device.type == "cuda" and not local:
        # Local statistics tell a row which rows share its process: a shortcut for the loss.
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)  # type: ignore[no-untyped-call]
    return nn.parallel.DistributedDataParallel(method, broadcast_buffers=not local)
