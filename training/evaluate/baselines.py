"""What a method is measured beside: plain features, its encoder untrained and with labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslops._names import shown
from sslops.training.config import TrainConfig
from sslops.training.data import Dataset, Split
from sslops.training.data.split import take
from sslops.training.distributed.process import World, seed_everything
from sslops.training.loggers.console import Console
from sslops.training.methods import CONTROLS, DataShape, Method, find_method
from sslops.training.methods.simclr import simclr_config
from sslops.training.methods.supervised import supervised_config
from sslops.training.models import LogMel
from sslops.training.storage.encoder import exported, load_encoder, save_encoder

__all__ = [
    "kept_control",
    "plain_features",
    "simclr_arm",
    "supervised_arms",
    "train_supervised",
]


def plain_features(data: Dataset) -> dict[str, nn.Module | None]:
    """Raw pixels (None), or log-mel of sound."""
    return {"log-mel": LogMel(data.rate)} if data.rate else {"pixels": None}


def train_supervised(
    config: TrainConfig, train: Split, shape: DataShape, world: World, console: Console
) -> nn.Module:
    """The encoder of `config` trained with labels, by the same loop, views and optimiser."""
    config = supervised_config(config)
    return _trained(CONTROLS[config.kind], config, train, shape, world, console)


def _trained(
    build: Callable[[Any, DataShape], Method],
    config: TrainConfig,
    train: Split,
    shape: DataShape,
    world: World,
    console: Console,
) -> nn.Module:
    """The encoder of a control after its training."""
    from sslops.training.engine.loop import Loop  # evaluating what is kept needs no loop

    seed_everything(config.seed)
    method = build(config, shape).to(world.device)
    if config.channels_last:
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    updating = Console(console.stream, quiet=console.quiet or not console.live)
    Loop(method, train, config, world, console=updating).run()
    return method.encoder


def _file(folder: Path, name: str) -> Path:
    """Where a run keeps the encoder of a control."""
    return folder / "checkpoint" / f"{name}.safetensors"


def kept_control(folder: Path, name: str) -> nn.Module | None:
    """The encoder of a control that a run's folder keeps; None if it was not trained."""
    path = _file(folder, name)
    return load_encoder(path) if path.is_file() else None


def _kept(
    folder: Path,
    name: str,
    method: str,
    config: TrainConfig,
    shape: DataShape,
    train: Callable[[], nn.Module],
) -> nn.Module:
    """A control's encoder: of the folder where it is there, else trained and kept in it."""
    kept = kept_control(folder, name)
    if kept is not None:
        return kept
    encoder = train()
    path = _file(folder, name)
    save_encoder(path, encoder, config, shape, method=method, data=config.data)
    return exported(encoder, config, shape)


def supervised_arms(
    folder: Path,
    config: TrainConfig,
    data: Dataset,
    train: Split,
    shape: DataShape,
    world: World,
    console: Console,
) -> dict[str, nn.Module]:
    """Encoders trained with labels: "supervised", and for sound one for each question asked.

    "supervised-speaker" learned that factor; "supervised-unseen" the labels, but not those of
    `config.held_out`. They are kept in the folder, so that a second evaluation trains none again.
    """
    splits = {} if train.labels is None else {"supervised": (train, shape)}
    for name, values in data.factors.items():
        relabelled = Split(train.images, train.factors[name])
        splits[f"supervised-{name}"] = (relabelled, shape._replace(classes=len(values)))
    held_out = getattr(config, "held_out", None)
    if held_out and train.labels is not None:
        splits["supervised-unseen"] = (_without(train, data, held_out), shape)
    encoders = {}
    for name, (split, size) in splits.items():

        def train_it(name: str = name, split: Split = split, size: DataShape = size) -> nn.Module:
            console.print(f"training the {name.removeprefix('supervised-')} control ...")
            return train_supervised(config, split, size, world, console)

        encoder = _kept(folder, name, "supervised", config, size, train_it)
        encoders[name] = encoder.to(world.device)
    return encoders


def simclr_arm(
    folder: Path,
    config: TrainConfig,
    train: Split,
    shape: DataShape,
    world: World,
    console: Console,
) -> nn.Module:
    """The same encoder trained by SimCLR on the same images for as many epochs of the same batch.

    Views, optimiser and projector are those of SimCLR's own recipe for the data. It is kept in
    the folder, so that a second evaluation trains none again.
    """
    control = simclr_config(config)

    def train_it() -> nn.Module:
        console.print("training the SimCLR control ...")
        return _trained(find_method("simclr").build, control, train, shape, world, console)

    return _kept(folder, "simclr", "simclr", control, shape, train_it).to(world.device)


def _without(split: Split, data: Dataset, held_out: str) -> Split:
    """The split less the recordings of one value of a factor."""
    name, _, value = held_out.partition("=")
    if value not in data.factors.get(name, ()):
        known = [f"{factor}={each}" for factor, values in data.factors.items() for each in values]
        raise ValueError(f"train: held_out must be one of {shown(known, ', ')}, got {held_out!r}")
    seen = split.factors[name] != data.factors[name].index(value)
    return take(split, torch.nonzero(seen).flatten())
