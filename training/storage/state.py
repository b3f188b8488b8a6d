"""The checkpoints of a run: all that the loop needs to go on bit for bit."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from sslops.training.methods import DataShape
from sslops.training.storage import checkpoint

if TYPE_CHECKING:
    from sslops.training.engine.loop import Loop

__all__ = ["Saved", "has_checkpoint", "load_run", "read_checkpoint", "save_run"]

ENCODER = "encoder."  # how the names of a method's encoder begin


def has_checkpoint(folder: Path, name: str = "last") -> bool:
    """Whether a run folder has the checkpoint NAME, in one file or divided."""
    path = folder / "checkpoint" / name
    return any(each.exists() for each in (_file(path), path, path.with_name(f"{name}.old")))


def _file(path: Path) -> Path:
    return path.with_name(f"{path.name}.pt")


def save_run(path: Path, loop: "Loop") -> None:
    """Write PATH.pt, or the folder PATH if the run is sharded; every process must call it."""
    rest = _rest(loop)
    if loop.sharded:
        from sslops.training.distributed.fsdp import save_sharded

        save_sharded(path, loop.method, loop.optimizer, rest, loop.world)
    elif loop.world.main:
        networks = {"method": loop.method.state_dict(), "optimizer": loop.optimizer.state_dict()}
        checkpoint.save(_file(path), {**rest, **networks})


def load_run(path: Path, loop: "Loop") -> None:
    """Undo `save_run`, also in another number of processes.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, or of other networks.
    """
    if loop.sharded:
        from sslops.training.distributed.fsdp import load_sharded

        state = load_sharded(path, loop.method, loop.optimizer, loop.world)
    else:
        state = checkpoint.load(_file(path), loop.world.device)
        try:
            loop.method.load_state_dict(state["method"])
        except RuntimeError as error:
            raise ValueError(
                "train: --resume needs the networks that this version builds, got a checkpoint of"
                f" others: {str(error).splitlines()[1].strip()}"
            ) from error
        loop.optimizer.load_state_dict(state["optimizer"])
    loop.step, loop.seconds, loop.best = state["step"], state["seconds"], state["best"]
    loop.window.load_state_dict(state["window"])
    loop.generator.set_state(state["views"].cpu())
    if len(state["rng"]) == loop.world.size:
        checkpoint.restore_rng(state["rng"][loop.world.rank])
    else:  # other processes than before: no stream of theirs to go on with
        torch.manual_seed(loop.config.seed * 1_000_003 + loop.step * 4099 + loop.world.rank)


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
            from sslops.training.distributed.fsdp import load_networks

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
        from sslops.training.distributed.fsdp import load_rest

        state = load_rest(path)
    else:
        state = checkpoint.load(_file(path))
    shape = state.get("shape")
    return Saved(path, state, state["step"], None if shape is None else DataShape(*shape))


def _rest(loop: "Loop") -> dict[str, Any]:
    """All but the networks and the optimiser."""
    own = checkpoint.rng_state()
    rng = [own] * loop.world.size
    if loop.world.size > 1:
        dist.all_gather_object(rng, own)
    return {
        "config": asdict(loop.config),
        "shape": None if loop.method.shape is None else list(loop.method.shape),
        "step": loop.step,
        "seconds": loop.seconds,
        "best": loop.best,
        "window": loop.window.state_dict(),
        "views": loop.generator.get_state(),  # one stream for all, see SharedGenerator
        "rng": rng,
    }
