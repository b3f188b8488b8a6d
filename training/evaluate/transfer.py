"""The transfer table: features learned on one data set, probed on the labels of another."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sslops.training.augment.colour import LUMA
from sslops.training.config import VideoConfig
from sslops.training.data import Clips, Dataset, DataShape, Split
from sslops.training.data.dataset import one_class
from sslops.training.data.notes import say
from sslops.training.distributed.process import World
from sslops.training.engine.setup import DataSource, build_method
from sslops.training.evaluate.run import evaluate_arms
from sslops.training.evaluate.video import evaluate_tracking, read_set
from sslops.training.loggers.console import Console
from sslops.training.storage.encoder import Trained
from sslops.training.storage.folder import write_json

__all__ = ["load_other", "match_channels", "transfer"]


def load_other(
    trained: Trained, shape: DataShape, data: str, root: str | None, source: DataSource
) -> Dataset | dict[str, Clips]:
    """What a run's encoder is probed on: a data set, or for one of videos those of a folder.

    Args:
        trained: the run.
        shape: of the data that it was trained on.
        data: name or folder, as of `--data`.
        root: where the data set's files lie, if not where it looks itself.
        source: has the data set, if it was loaded before.

    Raises:
        FileNotFoundError: there are no such data.
    """
    if trained.config.kind == "video":
        return read_set(data, cast(VideoConfig, trained.config))
    return source(data, root=root, size=shape.image_size or None)


def transfer(
    trained: Trained,
    shape: DataShape,
    other: Dataset | dict[str, Clips],
    world: World,
    console: Console,
    supervised: nn.Module | None = None,
) -> dict[str, Any]:
    """Evaluate a run's encoder on another data set; write transfer/DATA.json.

    Of a run on videos, objects are followed through the others. The arms are the method, the same
    encoder untrained, raw pixels, and the encoder trained with the labels of the first data set.
    Probes are fitted on the training part of the other data set. Its images are brought to the
    channels of the encoder.

    Args:
        trained: the run.
        shape: of the data that it was trained on.
        other: what `load_other` gave.
        world: gives the device.
        console: where to report.
        supervised: the encoder trained with labels, if there is one.

    Returns:
        As `evaluate`, with the name of the first data set under "trained_on".

    Raises:
        ValueError: sound against images, or data without labels of two classes.
    """
    folder, name, config, encoder = trained
    arms: dict[str, nn.Module | None]
    if not isinstance(other, Dataset):
        untrained = build_method(name, config, shape, world).encoder.eval()
        arms = {name: encoder, "random-init": untrained, "identity": None}
        how = cast(VideoConfig, config)
        results = evaluate_tracking(arms, other, how, folder, world.device, console)
        return _kept(results, trained, next(iter(other)))
    if bool(other.rate) != bool(shape.rate) or shape.rate:
        raise ValueError(
            f"eval: --eval-data needs images for an encoder of images, got {other.name} for {name}"
            f" on {config.data}"
        )
    if other.train.labels is None or other.test.labels is None:
        raise ValueError(f"eval: --eval-data needs labels, got none in {other.name}")
    if (single := one_class(other.test, other.classes)) is not None:
        raise ValueError(
            "eval: --eval-data needs labels of 2 classes to test on, got one,"
            f" {single}, in {other.name}"
        )
    other = match_channels(other, shape.channels)
    untrained = build_method(name, config, shape, world).encoder.eval()
    arms = {name: encoder, "random-init": untrained, "pixels": None}
    if supervised is not None and not config.uses_labels:
        arms["supervised"] = supervised.to(world.device)
    console.print(f"probing {', '.join(arms)} on {other.name} ...")
    return _kept(evaluate_arms(arms, other, config, world), trained, other.name)


def _kept(results: dict[str, Any], trained: Trained, data: str) -> dict[str, Any]:
    """The results, written into the run's folder."""
    results["trained_on"] = Path(trained.config.data).name
    folder = trained.folder / "transfer"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{data}.json", results)
    return results


def match_channels(data: Dataset, channels: int) -> Dataset:
    """The data set in grey, or its grey three times, as an encoder of `channels` wants it."""
    if data.channels == channels:
        return data
    times = ", three times" if channels == 3 else ""
    say(
        f"{data.name}: images of {data.channels} channels are brought to the encoder's {channels}:"
        f" grey{times}"
    )

    def convert(split: Split) -> Split:
        return replace(split, images=_convert(split.images, channels))

    return replace(data, train=convert(data.train), test=convert(data.test))


def _convert(images: Tensor, channels: int) -> Tensor:
    if channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    weights = torch.tensor(LUMA)[:, None, None]
    parts = [
        (part.float() * weights).sum(1, keepdim=True).round().to(torch.uint8)
        for part in torch.split(images, 4096)
    ]
    return torch.cat(parts)
