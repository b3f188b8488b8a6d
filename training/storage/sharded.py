"""Checkpoints of sharded runs: a folder in which each process writes its part."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from sslops.training.distributed.process import World, wait
from sslops.training.storage import checkpoint

__all__ = ["load_networks", "load_rest", "load_sharded", "save_sharded"]

REST = "rest.pt"  # what is not divided


def save_sharded(
    folder: Path,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    rest: dict[str, Any],
    world: World,
) -> None:
    """Write `folder`, each process its part; until it is whole, the old one stays.

    Args:
        folder: such as checkpoint/last.
        method: sharded or not.
        optimizer: of its parameters.
        rest: everything else, the same on all processes; process 0 writes it.
        world: this process among all.
    """
    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    if world.main:
        shutil.rmtree(new, ignore_errors=True)
    wait(world)
    networks, optimisers = get_state_dict(method, optimizer)
    state = {"method": networks, "optimizer": optimisers}
    try:
        save(state, checkpoint_id=new, no_dist=world.size == 1)
        if world.main:
            checkpoint.save(new / REST, rest)
            checkpoint.check(new / REST)
    except (CheckpointException, OSError) as error:
        reason = _storage_reason(error)
        if reason is None:
            raise
        if world.main:
            shutil.rmtree(new, ignore_errors=True)
        before = folder.exists() or old.exists()
        raise checkpoint.no_room(folder, reason, before=before) from error
    if world.main:
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
        shutil.rmtree(old, ignore_errors=True)
    wait(world)


def _storage_reason(error: BaseException) -> BaseException | None:
    """What kept a process from writing; None if it was something else."""
    if isinstance(error, checkpoint.StorageError):
        return error.__cause__
    if isinstance(error, CheckpointException):
        found = [cause for cause, _ in error.failures.values()]
        return next((each for each in found if checkpoint.of_storage(each)), None)
    return error


def load_sharded(
    folder: Path, method: nn.Module, optimizer: torch.optim.Optimizer, world: World
) -> dict[str, Any]:
    """Put networks and optimiser back, whatever number of processes wrote them.

    Returns:
        The rest.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    folder = _whole(folder)
    rest = checkpoint.load(folder / REST, world.device)
    networks, optimisers = get_state_dict(method, optimizer)
    state: dict[str, Any] = {"method": networks, "optimizer": optimisers}
    load(state, checkpoint_id=folder, no_dist=world.size == 1)
    set_state_dict(
        method,
        optimizer,
        model_state_dict=state["method"],
        optim_state_dict=state["optimizer"],
    )
    return rest


def load_rest(folder: Path) -> dict[str, Any]:
    """What is not divided of the checkpoint FOLDER, on the CPU."""
    return checkpoint.load(_whole(folder) / REST)


def load_networks(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The tensors of the method that `state` names, whole, in one process; fills those of it."""
    load({"method": state}, checkpoint_id=_whole(folder), no_dist=True)
    return state


def _whole(folder: Path) -> Path:
    """The checkpoint of that name; the one before it, if killed between the two renames."""
    return folder if folder.exists() else folder.with_name(f"{folder.name}.old")
