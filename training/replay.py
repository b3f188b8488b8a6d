"""A step that gave NaN or infinity: kept with all that made it, and made again."""

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sslops.training import checkpoint
from sslops.training.augment import SharedGenerator
from sslops.training.console import Console
from sslops.training.distributed import World, join
from sslops.training.methods import Batch, DataShape, find_method
from sslops.training.optim import clip_gradient
from sslops.training.step import Step, prepare_encoder

if TYPE_CHECKING:
    from sslops.training.loop import Loop

__all__ = ["random_state", "replay", "save_failure"]

SHOWN = 5  # names in a list


def random_state(generator: torch.Generator, device: torch.device) -> dict[str, Any]:
    """The generators that a step draws from: of the views, of torch, of the device."""
    states = {"views": generator.get_state(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def save_failure(
    path: Path, loop: "Loop", batch: Batch, views: Any, found: dict[str, float]
) -> None:
    """Write what `replay` needs; the weights are those that the step began with."""
    method = loop.method
    state = {
        "name": method.name,
        "shape": list(method.shape) if method.shape is not None else None,
        "config": asdict(loop.config),
        "precision": loop.precision,
        "processes": loop.world.size,
        "step": loop.step,
        "images": batch.images if isinstance(batch.images, Tensor) else None,  # or all the sound
        "labels": batch.labels,
        "views": views,
        "before": loop.before,
        "method": method.state_dict(),
        **found,
    }
    checkpoint.save(path, state)


def replay(path: Path, device: str, console: Console) -> bool:
    """Make the step of a file again and say where the first NaN or infinity appears.

    Args:
        path: nonfinite.pt of a run folder.
        device: where to make it.
        console: where to report.

    Returns:
        Whether loss or gradient were not finite again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file.
    """
    from sslops.training.evaluation import build_method

    world = World(0, 1, join(device).device)
    state = checkpoint.load(path, world.device)
    if "before" not in state:
        raise ValueError(f"train: --replay needs a nonfinite.pt, got another file, {path}")
    cls = find_method(state["name"]).config
    known = {field.name for field in fields(cls)}
    config = cls(**{name: value for name, value in state["config"].items() if name in known})
    method = build_method(state["name"], config, DataShape(*state["shape"]), world)
    method.load_state_dict(state["method"])
    method.train()
    generator = SharedGenerator()
    before = state["before"]
    generator.set_state(before["views"].cpu())
    torch.set_rng_state(before["torch"].cpu())
    if "cuda" in before and world.device.type == "cuda":
        torch.cuda.set_rng_state(before["cuda"].cpu(), world.device)

    views = state["views"]
    if state["images"] is None:
        console.print("views     those kept; recordings are not")
    elif state["processes"] == 1:
        views = method.views(Batch(state["images"], state["labels"]), generator)
        same = _equal(views, state["views"])
        console.print(f"views     {'the same bits' if same else 'NOT those of the run'}")
    else:
        console.print(f"views     those kept; one of {state['processes']} processes, alone here")
    prepare_encoder(method.encoder, config)
    first: list[str] = []
    for name, module in method.named_modules():
        if not list(module.children()):
            module.register_forward_hook(_watch(name, first))
    bf16, share = state["precision"] == "bf16", config.batch // state["processes"]
    compute = Step(method, method, config, share=share, device=world.device, bf16=bf16)
    loss = compute(views, lambda loss: None)["loss"].detach()
    weights = [name for name, each in method.named_parameters() if not _finite(each)]
    grads = [name for name, each in method.named_parameters() if not _finite(each.grad)]
    norm = float(clip_gradient(method, None))
    console.print(f"step      {state['step'] + 1}, {state['name']}, {state['precision']}")
    console.print(f"loss      {float(loss)} (in the run {state['loss']})")
    console.print(f"gradient  norm {norm} (in the run {state['grad_norm']})")
    console.print(f"weights   {_names(weights)}")
    console.print(f"outputs   {_names(first)}")
    console.print(f"gradients {_names(grads)}")
    return not (math.isfinite(float(loss)) and math.isfinite(norm))


def _finite(x: Tensor | None) -> bool:
    return x is None or bool(x.isfinite().all())


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
