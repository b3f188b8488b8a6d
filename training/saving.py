"""The checkpoints of a run: all that the loop needs to go on bit for bit."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from sslops.training import checkpoint

if TYPE_CHECKING:
    from sslops.training.loop import Loop

__all__ = ["has_checkpoint", "load_run", "save_run"]


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
        from sslops.training.sharding import save_sharded

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
        from sslops.training.sharding import load_sharded

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


def _rest(loop: "Loop") -> dict[str, Any]:
    """All but the networks and the optimiser."""
    own = checkpoint.rng_state()
    rng = [own] * loop.world.size
    if loop.world.size > 1:
        dist.all_gather_object(rng, own)
    return {
        "config": asdict(loop.config),
        "step": loop.step,
        "seconds": loop.seconds,
        "best": loop.best,
        "window": loop.window.state_dict(),
        "views": loop.generator.get_state(),  # one stream for all, see SharedGenerator
        "rng": rng,
    }
