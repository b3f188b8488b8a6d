"""The processes of a run: set-up under torchrun, seeds."""

import gc
import os
import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

__all__ = [
    "World",
    "join",
    "leave",
    "main_value",
    "mean_over",
    "restarted",
    "seed_everything",
    "share",
    "wait",
]


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
        # torchrun keeps its store when it starts the processes again: addresses of the dead ones
        # must not be found under the same names.
        store, rank, size = next(rendezvous("env://"))
        store = PrefixStore(f"start{_starts()}", store)
        backend = "nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    return World(int(os.environ.get("RANK", "0")), size, place)


def leave() -> None:
    """End the process group, if there is one."""
    if dist.is_initialized():
        gc.collect()  # what holds the group must go before it, or its threads outlive the process
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


def restarted() -> bool:
    """Whether torchrun has started this process again after a failure."""
    return _starts() > 0


def _starts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def wait(world: World) -> None:
    """Until all processes are here."""
    if world.size > 1:
        dist.barrier()


def mean_over(world: World, values: Tensor) -> Tensor:
    """The mean of `values` over all processes."""
    if world.size > 1:
        values = values / world.size
        dist.all_reduce(values)
    return values


def share(world: World, N: int) -> Tensor:
    """Positions of this process's part of N things; the last is repeated to make parts equal."""
    each = -(-N // world.size)
    return (torch.arange(each) + world.rank * each).clamp_max(N - 1)
