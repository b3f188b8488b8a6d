"""A loss or gradient that is not finite: seen in time, and kept so that it can be made again."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslops.training.config import TrainConfig
from sslops.training.data import Batch
from sslops.training.distributed.process import World
from sslops.training.methods import Method
from sslops.training.storage import checkpoint

__all__ = [
    "FiniteCheck",
    "NonFiniteLoss",
    "failure_path",
    "local",
    "random_state",
    "save_failure",
]


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; no update was made with it."""


class FiniteCheck:
    """Reads the loss on the host while the backward pass is already queued behind it.

    A GPU therefore never runs dry, and the answer is there before the optimiser's step.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.value = torch.empty((), pin_memory=self.cuda)
        self.copied = torch.cuda.Event() if self.cuda else None  # type: ignore[no-untyped-call]

    def watch(self, loss: Tensor) -> None:
        """Start the copy; call before `backward`."""
        self.value.copy_(loss.detach(), non_blocking=True)
        if self.copied is not None:
            self.copied.record()

    def holds(self) -> bool:
        """Whether the watched loss is finite; call after `backward`."""
        if self.copied is not None:
            self.copied.synchronize()
        return math.isfinite(float(self.value))


def random_state(generator: torch.Generator, device: torch.device) -> dict[str, Any]:
    """The generators that a step draws from: of the views, of torch, of the device."""
    states = {"views": generator.get_state(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def failure_path(folder: Path, rank: int) -> Path:
    """Where a process keeps its part of a step."""
    return folder / f"nonfinite{rank or ''}.pt"


def save_failure(
    folder: Path,
    method: Method,
    config: TrainConfig,
    world: World,
    batch: Batch,
    views: Any,
    **facts: Any,
) -> Path:
    """Write what makes a step again; the weights are those that it began with.

    Of sharded ones each process keeps its shards: others may not be here to give theirs.

    Args:
        folder: of the run.
        method: its networks, before the update.
        config: of the run.
        world: this process among all.
        batch: of the step.
        views: made of it.
        facts: "step", "precision", the random states "before" it, "loss" and "grad_norm".
    """
    state = {
        "name": method.name,
        "shape": list(method.shape) if method.shape is not None else None,
        "config": asdict(config),
        "processes": world.size,
        "rank": world.rank,
        "images": batch.images if isinstance(batch.images, Tensor) else None,  # or all the sound
        "labels": batch.labels,
        "views": views,
        "method": {name: local(value) for name, value in method.state_dict().items()},
        **facts,
    }
    path = failure_path(folder, world.rank)
    checkpoint.save(path, state)
    return path


def local(x: Any) -> Any:
    """This process's shard, where a tensor is divided."""
    return x.tolocal() if hasattr(x, "tolocal") else x
