"""What a method is measured beside: plain features, its encoder untrained and with labels."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslops._names import shown
from sslops.training.config import TrainConfig, make_config
from sslops.training.data import Dataset, Split
from sslops.training.data.split import take
from sslops.training.distributed.process import World, seed_everything
from sslops.training.engine.loop import Loop
from sslops.training.loggers.console import Console
from sslops.training.methods import DataShape, Method
from sslops.training.methods.cpc_audio import CPCAudioConfig
from sslops.training.methods.simclr import SimCLR, SimCLRConfig
from sslops.training.methods.supervised import Supervised, supervised_config
from sslops.training.methods.supervised_audio import SupervisedAudio
from sslops.training.models import LogMel
from sslops.training.storage import encoder as export

# What SimCLR's recipe decides in the control; the rest is the run's.
OWN_OF_SIMCLR = (
    "views optimizer lr lr_scaling warmup_epochs schedule weight_decay momentum trust clip"
    " temperature num_views proj_hidden proj_dim proj_layers"
).split()

__all__ = ["plain_features", "simclr_arm", "supervised_arms", "train_supervised"]


def plain_features(data: Dataset) -> dict[str, nn.Module | None]:
    """Raw pixels (None), or log-mel of sound."""
    return {"log-mel": LogMel(data.rate)} if data.rate else {"pixels": None}


def train_supervised(
    config: TrainConfig, train: Split, shape: DataShape, world: World, console: Console
) -> nn.Module:
    """The encoder of `config` trained with labels, by the same loop, views and optimiser."""
    config = supervised_config(config)
    seed_everything(config.seed)
    method: Method
    if isinstance(config, CPCAudioConfig):
        method = SupervisedAudio(config, shape).to(world.device)
    else:
        method = Supervised(config, shape).to(world.device)
    if config.channels_last:
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    Loop(method, train, config, world, console=console).run()
    return method.encoder


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
        path = folder / "checkpoint" / f"{name}.safetensors"
        if not path.is_file():
            asked = name.replace("supervised-", "") if name != "supervised" else "supervised"
            console.print(f"training the {asked} control ...")
            updating = Console(console.stream, quiet=console.quiet or not console.live)
            encoder = train_supervised(config, split, size, world, updating)
            export.save_encoder(path, encoder, config, size, method="supervised", data=config.data)
        encoders[name] = export.load_encoder(path).to(world.device)
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
    path = folder / "checkpoint" / "simclr.safetensors"
    if not path.is_file():
        console.print("training the SimCLR control ...")
        own = make_config(SimCLRConfig, "simclr", {"data": config.data, "recipe": config.recipe})
        changed = {name: getattr(own, name) for name in OWN_OF_SIMCLR}
        # Of both classes, so that the encoder's options are those that the method gives it.
        both: Any = dataclass(frozen=True)(type("Control", (SimCLRConfig, type(config)), {}))
        control = both(**{**asdict(own), **asdict(config), **changed, "knn_every": 0})
        seed_everything(config.seed)
        method = SimCLR(control, shape).to(world.device)
        if config.channels_last:
            method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        updating = Console(console.stream, quiet=console.quiet or not console.live)
        Loop(method, train, control, world, console=updating).run()
        export.save_encoder(path, method.encoder, control, shape, method="simclr", data=config.data)
    return export.load_encoder(path).to(world.device)


def _without(split: Split, data: Dataset, held_out: str) -> Split:
    """The split less the recordings of one value of a factor."""
    name, _, value = held_out.partition("=")
    if value not in data.factors.get(name, ()):
        known = [f"{factor}={each}" for factor, values in data.factors.items() for each in values]
        raise ValueError(f"train: held_out must be one of {shown(known, ', ')}, got {held_out!r}")
    seen = split.factors[name] != data.factors[name].index(value)
    return take(split, torch.nonzero(seen).flatten())
