"""What is said before a run."""

from pathlib import Path

import torch
from torch import nn

from sslops.training.config import TrainConfig
from sslops.training.data import Clips, Dataset, Split, Waves
from sslops.training.engine.loop import Loop
from sslops.training.loggers.console import Console
from sslops.training.loggers.words import amount, count
from sslops.training.methods import Method

__all__ = ["count_parameters", "print_banner"]


def count_parameters(module: nn.Module) -> int:
    """Numbers in all parameters."""
    return sum(param.numel() for param in module.parameters())


def print_banner(
    name: str,
    data: Dataset,
    split: Split,
    method: Method,
    loop: Loop,
    folder: Path,
    console: Console,
) -> None:
    """What is about to be trained, on what, and where it goes."""
    config, world = loop.config, loop.world
    epochs = loop.steps / loop.sampler.steps_per_epoch
    spent = f", resumed after step {loop.step}" if loop.step else ""
    console.banner(
        f"sslops train {name}",
        {
            "data": f"{data.name}, {_kind(split)} ({data.licence})",
            "encoder": f"{config.arch}, {count_parameters(method.encoder):,} parameters,"
            f" {method.encoder.dim} features",
            "batch": f"{config.batch}, loss at chance {method.chance:.2f}{_saving(config)}",
            "steps": f"{loop.steps:,} in {amount(epochs)} epoch{'s' * (epochs != 1)}{spent}",
            "optimiser": f"{config.optimizer}, peak lr {loop.peak_lr:.3g},"
            f" {count(loop.warmup, 'steps')} of warm-up, weight decay {config.weight_decay:g}",
            "device": f"{world.device}, {loop.precision}, {count(world.size, 'processes')},"
            f" {count(torch.get_num_threads(), 'threads')}",
            "out": str(folder),
        },
    )


def _saving(config: TrainConfig) -> str:
    """What is done to need less memory."""
    parts = f", micro-batches of {config.micro_batch}" if config.micro_batch else ""
    return parts + (", activations computed twice" if config.checkpointing else "")


def _kind(split: Split) -> str:
    """How many of what."""
    if isinstance(split.images, Waves):
        minutes = float(split.images.lengths.sum()) / split.images.rate / 60
        many = count(len(split), "recordings")
        return f"{many}, {amount(minutes)} min at {split.images.rate:,} Hz"
    if isinstance(split.images, Clips):
        height, width = split.images.content.frames.shape[2:]
        frames = count(int(split.images.lengths.sum()), "frames")
        return f"{count(len(split), 'videos')} of {frames}, {width}x{height}"
    return f"{count(len(split), 'images')} {'x'.join(str(n) for n in split.images.shape[1:])}"
