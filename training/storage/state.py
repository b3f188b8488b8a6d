"""The checkpoints of a run: all that the loop needs to go on bit for bit."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from sslops.training.data import DataShape
from sslops.training.distributed.process import World
from sslops.training.methods import Method
from sslops.training.storage import checkpoint
from sslops.training.storage.folder import checkpoint_file

__all__ = ["Saved", "load_run", "read_checkpoint", "save_run"]

ENCODER = "encoder."  # how the names of a method's encoder begin


def save_run(
    path: Path,
    method: Method,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
    world: World,
    *,
    sharded: bool,
) -> None:
    """Write PATH.pt, or the folder PATH if the run is sharded; every process must call it.

    Args:
        path: without ending.
        method: its networks.
        optimizer: of its parameters.
        progress: what else the loop needs to go on, the same on all processes; the random states
            of all processes are added under "rng".
        world: this process among all.
        sharded: whether parameters are divided among the processes.
    """
    own = checkpoint.rng_state()
    rng = [own] * world.size
    if world.size > 1:
        dist.all_gather_object(rng, own)
    rest = {**progress, "rng": rng}
    if sharded:
        from sslops.training.storage.sharded import save_sharded

        save_sharded(path, method, optimizer, rest, world)
    elif world.main:
        networks = {"method": method.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoint.save(checkpoint_file(path), {**rest, **networks})


def load_run(
    path: Path,
    method: Method,
    optimizer: torch.optim.Optimizer,
    world: World,
    *,
    sharded: bool,
) -> dict[str, Any]:
    """Put networks and optimiser back, also in another number of processes.

    Returns:
        The progress that `save_run` got, and the random states "rng".

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, or of other networks.
    """
    if sharded:
        from sslops.training.storage.sharded import load_sharded

        return load_sharded(path, method, optimizer, world)
    state = checkpoint.load(checkpoint_file(path), world.device)
    try:
        method.load_state_dict(state["method"])
    except RuntimeError as error:
        raise ValueError(
            "train: --resume needs the networks that this version builds, got a checkpoint of"
            f" others: {str(error).splitlines()[1].strip()}"
        ) from error
    optimizer.load_state_dict(state["optimizer"])
    return state


class Saved(NamedTuple):
    """What a checkpoint has of an encoder.

    Attributes:
        path: of the checkpoint, without ending.
        state: all of it, or of a divided one the part that is not divided.
        step: updates made.
        shape: of the data; None in checkpoints of older versions.
    """

    path: Path
    state: dict[str, Any]
    step: int
    shape: DataShape | None

    def fill(self, encoder: nn.Module) -> None:
        """Put the weights into an encoder that is built like that of the run."""
        if "method" in self.state:
            networks = self.state["method"]
        else:
            from sslops.training.storage.sharded import load_networks

            own = {ENCODER + name: value for name, value in encoder.state_dict().items()}
            networks = load_networks(self.path, own)
        named = {name: value for name, value in networks.items() if name.startswith(ENCODER)}
        encoder.load_state_dict({name[len(ENCODER) :]: value for name, value in named.items()})


def read_checkpoint(path: Path) -> Saved:
    """The checkpoint PATH, for its encoder alone: neither method, loop nor data are needed.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged.
    """
    if path.exists() or path.with_name(f"{path.name}.old").exists():
        from sslops.training.storage.sharded import load_rest

        state = load_rest(path)
    else:
        state = checkpoint.load(checkpoint_file(path))
    shape = state.get("shape")
    return Saved(path, state, state["step"], None if shape is None else DataShape(*shape))
