"""A step that gave NaN or infinity, made again from what was kept of it."""

import math
import os
import socket
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from sslops._names import shown
from sslops.training.augment import SharedGenerator
from sslops.training.distributed.process import World, join, leave, wait
from sslops.training.engine.nonfinite import failure_path, local
from sslops.training.engine.optim import clip_gradient
from sslops.training.engine.setup import build_method
from sslops.training.engine.step import make_step
from sslops.training.loggers.console import Console
from sslops.training.methods import Batch, DataShape
from sslops.training.storage import checkpoint
from sslops.training.storage.folder import saved_config

__all__ = ["replay"]

SHOWN = 5  # names in a list


def replay(path: Path, device: str, console: Console) -> bool:
    """Make the step of a file again and say where the first NaN or infinity appears.

    A step of several processes is made by as many, from their files in the same folder; where one
    is missing, by that of `path` alone, which then has its own rows only.

    Args:
        path: nonfinite.pt of a run folder.
        device: where to make it; with "auto" the CPU if there are fewer GPUs than processes.
        console: where to report.

    Returns:
        Whether loss or gradient were not finite again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file; or its weights are sharded, and others' files are missing.
    """
    state = _read(path)
    size, config = state["processes"], state["config"]
    console.print(f"step      {state['step'] + 1}, {state['name']}, {state['precision']}")
    paths = [failure_path(path.parent, rank) for rank in range(size)]
    missing = [each.name for each in paths if not _belongs(each, state)]
    if size > 1 and not missing:
        found = _together(paths, device)
    elif size > 1 and config["parallel"] == "fsdp":
        raise ValueError(
            f"train: --replay of sharded weights needs the files of all {size} processes of the"
            f" step beside each other, got no {shown(missing, ', ')}"
        )
    else:
        if size > 1:
            absent = ", ".join(missing)
            console.print(f"alone     one of {size} processes; no {absent} of this step")
        found = [_again(path, World(0, 1, join(device).device))]
    for rank, each in enumerate(found):
        if len(found) > 1:
            console.print(f"process   {rank} of {size}")
        for line in each.lines:
            console.print(line)
    return not all(each.finite for each in found)


class _Found(NamedTuple):
    finite: bool
    lines: list[str]


def _read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:

    import_module("torch.distributed.tensor")  # or torch.load refuses sharded weights; slow

    state = checkpoint.load(path, device)
    if "before" not in state:
        raise ValueError(f"train: --replay needs a nonfinite.pt, got another file, {path}")
    return state


def _belongs(path: Path, state: dict[str, Any]) -> bool:
    """Whether a file is there, and of the same step."""
    if not path.is_file():
        return False
    try:
        other = _read(path)
    except ValueError:
        return False  # damaged
    same = ("name", "config", "processes", "step")
    return all(other[key] == state[key] for key in same)


def _together(paths: list[Path], device: str) -> list[_Found]:
    """Each file in a process of its own."""
    size = len(paths)
    if device == "auto" and torch.cuda.device_count() < size:
        device = "cpu"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = get_context("spawn").SimpleQueue()
    spawn(_process, (paths, device, port, found), nprocs=size)  # type: ignore[no-untyped-call]
    by_rank = dict(found.get() for _ in paths)
    return [by_rank[rank] for rank in range(size)]


def _process(rank: int, paths: list[Path], device: str, port: int, found: Any) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(paths)),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    world = join(device)
    found.put((rank, _again(paths[rank], world)))
    wait(world)
    leave()


def _again(path: Path, world: World) -> _Found:
    """Make the step of a file again, as the process `world` says."""
    state = _read(path, world.device)
    config = saved_config(state["name"], state["config"])
    if world.size > 1 and config.threads is not None:
        torch.set_num_threads(config.threads)
    method = build_method(state["name"], config, DataShape(*state["shape"]), world)
    step = make_step(method, config, world, state["precision"], state["processes"])
    with torch.no_grad():
        for name, value in method.state_dict().items():
            local(value).copy_(state["method"].pop(name))
    method.train()
    generator = SharedGenerator()
    generator.rank, generator.size = state.get("rank", 0), state["processes"]
    before = state["before"]
    generator.set_state(before["views"].cpu())
    torch.set_rng_state(before["torch"].cpu())
    if "cuda" in before and world.device.type == "cuda":
        torch.cuda.set_rng_state(before["cuda"].cpu(), world.device)

    views, lines = state["views"], ["views     those kept; recordings are not"]
    if state["images"] is not None:
        views = method.views(Batch(state["images"], state["labels"]), generator)
        same = _equal(views, state["views"])
        lines = [f"views     {'the same bits' if same else 'NOT those of the run'}"]
    first: list[str] = []
    for name, module in method.named_modules():
        if not list(module.children()):
            module.register_forward_hook(_watch(name, first))
    loss = float(step(views, lambda loss: None)["loss"].detach())
    weights = [name for name, each in method.named_parameters() if not _finite(each)]
    grads = [name for name, each in method.named_parameters() if not _finite(each.grad)]
    norm = float(clip_gradient(method, None))
    lines += [
        f"loss      {loss} (in the run {state['loss']})",
        f"gradient  norm {norm} (in the run {state['grad_norm']})",
        f"weights   {_names(weights)}",
        f"outputs   {_names(first)}",
        f"gradients {_names(grads)}",
    ]
    return _Found(math.isfinite(loss) and math.isfinite(norm), lines)


def _finite(x: Tensor | None) -> bool:
    return x is None or bool(local(x).isfinite().all())


def _watch(name: str, found: list[str]) -> Any:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        if isinstance(out, Tensor) and not _finite(out):
            found.append(name)

    return hook


def _names(names: list[str]) -> str:
    if not names:
        return "all finite"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"not finite, first: {', '.join(names[:SHOWN])}{more}"


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
