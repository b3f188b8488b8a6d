"""What a run is made of: its data set, the parts of it, and the method with fresh weights."""

from typing import Literal

import torch
from torch import nn

from sslops.training.config import TrainConfig
from sslops.training.data import Dataset, Split, load, split_validation, subset
from sslops.training.distributed.process import World, seed_everything
from sslops.training.loggers.words import SAMPLES, count
from sslops.training.methods import DataShape, Method, find_method

__all__ = ["DataSource", "build_method", "load_data", "shape_of", "whole"]

KINDS = {"image": "images", "sound": "sound", "video": "videos"}


class DataSource:
    """Loads a data set when it is first asked for, and keeps it for whoever asks for it next.

    Training, evaluation, transfer and the runs of several seeds hand one on, so that the files are
    read, and lie in memory, once. It holds those of a run: its own, and that of `eval_data`.
    """

    def __init__(self) -> None:
        self._read: dict[tuple[object, ...], Dataset] = {}

    def __call__(
        self,
        data: str,
        *,
        root: str | None = None,
        size: int | None = None,
        kind: Literal["image", "sound", "video"] = "image",
    ) -> Dataset:
        """As `sslops.training.data.load`."""
        asked = (data, root, size, kind)
        if asked not in self._read:
            self._read[asked] = load(data, root=root, size=size, kind=kind)
        return self._read[asked]


def load_data(
    config: TrainConfig, source: DataSource | None = None
) -> tuple[Dataset, Split, Split | None]:
    """The data set, and the training images divided into those trained on and those measured on.

    Args:
        config: names the data set.
        source: gives it where it may have been loaded before.

    Raises:
        ValueError: `config.validation` of the images leaves one side empty.
    """
    source = source or DataSource()
    data = source(config.data, root=config.data_root, size=config.image_size, kind=config.kind)
    train, validation = data.train, None
    if config.train_images is not None and config.train_images < len(train.images):
        train = subset(train, config.train_images, config.seed)
    if config.validation > 0 and config.knn_every > 0 and train.labels is not None:
        N = len(train)
        if not 0 < round(N * config.validation) < N:
            advice = "another --validation"
            if N * config.validation < 1:
                drawn = config.train_images is not None
                advice = f"--validation 0{' or more --train-images' if drawn else ''}"
            raise ValueError(
                "train: --validation must leave some to train on and some to measure on, got"
                f" {config.validation:g} of {count(N, SAMPLES[config.kind])}; use {advice}"
            )
        train, validation = split_validation(train, config.validation, config.seed)
    return data, train, validation


def shape_of(data: Dataset) -> DataShape:
    """What networks need to know of a data set."""
    return DataShape(data.channels, data.image_size, len(data.classes), data.rate, data.frames)


def build_method(name: str, config: TrainConfig, shape: DataShape, world: World) -> Method:
    """A method with freshly drawn weights: the same ones for the same seed."""
    entry = find_method(name)
    kind = "sound" if shape.rate else "video" if shape.frames else "image"
    if entry.kind != kind:
        has = f"sound at {shape.rate:,} Hz" if shape.rate else KINDS[kind]
        raise ValueError(f"{name}: needs {KINDS[entry.kind]}, got {has}: {config.data}")
    seed_everything(config.seed)
    method = entry.build(config, shape).to(world.device)
    method.name, method.shape = name, shape
    if config.channels_last:
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method


def whole(method: Method, config: TrainConfig, shape: DataShape, world: World) -> nn.Module:
    """The method's encoder with all its weights, on process 0; every process must call it."""
    if config.parallel != "fsdp" or world.size == 1:
        return method.encoder
    from sslops.training.distributed.fsdp import full_state

    state = full_state(method.encoder)
    encoder = find_method(method.name).build(config, shape).encoder
    if world.main:
        encoder.load_state_dict(state)
    return encoder.to(world.device)
