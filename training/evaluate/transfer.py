"""The transfer table: features learned on one data set, probed on the labels of another."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sslops.training.augment.colour import LUMA
from sslops.training.config import TrainConfig
from sslops.training.data import Dataset, Split
from sslops.training.data.dataset import one_class
from sslops.training.distributed.process import World
from sslops.training.engine.setup import DataSource, build_method, load_data, shape_of
from sslops.training.evaluate.run import evaluate_arms
from sslops.training.evaluate.video import evaluate_tracking, read_set
from sslops.training.loggers.console import Console
from sslops.training.methods import DataShape
from sslops.training.methods.video_colorization import VideoColorizationConfig
from sslops.training.report.summary import print_tables
from sslops.training.storage import encoder as export
from sslops.training.storage.folder import read_config, write_json

__all__ = ["match_channels", "transfer"]


def transfer(
    folder: Path,
    data: str,
    root: str | None,
    world: World,
    console: Console,
    source: DataSource | None = None,
) -> dict[str, Any]:
    """Evaluate a run's encoder on another data set; say it, and write transfer/DATA.json.

    Of a run on videos, objects are followed through those of the folder `data`.

    The arms are the method, the same encoder untrained, raw pixels, and the encoder trained with
    the labels of the first data set where the run has one. Probes are fitted on the training part
    of the other data set. Its images are brought to the size and the channels of the encoder.

    Args:
        folder: of a run that is over.
        data: name or folder, as of `--data`.
        root: where the data set's files lie, if not where it looks itself.
        world: gives the device.
        console: where to report.
        source: has the data set of the run, if it was loaded before.

    Returns:
        As `evaluate`, with the name of the first data set under "trained_on".

    Raises:
        FileNotFoundError: no complete run, or no such data.
        ValueError: sound against images, or data without labels of two classes.
    """
    name, config = read_config(folder)
    trained = export.load_encoder(folder).to(world.device)
    source = source or DataSource()
    shape = export.read_shape(folder) or shape_of(load_data(config, source)[0])  # of older runs
    if isinstance(config, VideoColorizationConfig):
        return _follow(folder, data, name, trained, shape, config, world, console)
    other = source(data, root=root, size=shape.image_size or None)
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
    arms: dict[str, nn.Module | None] = {
        name: trained,
        "random-init": build_method(name, config, shape, world).encoder.eval(),
        "pixels": None,
    }
    supervised = folder / "checkpoint" / "supervised.safetensors"
    if supervised.is_file() and name != "supervised":
        arms["supervised"] = export.load_encoder(supervised).to(world.device)
    console.print(f"probing {', '.join(arms)} on {other.name} ...")
    results = evaluate_arms(arms, other, config, world)
    _keep(results, folder, other.name, config, console)
    return results


def _follow(
    folder: Path,
    data: str,
    name: str,
    trained: nn.Module,
    shape: DataShape,
    config: VideoColorizationConfig,
    world: World,
    console: Console,
) -> dict[str, Any]:
    """Objects in the videos of the folder `data`; pictures go into the run's folder."""
    arms: dict[str, nn.Module | None] = {
        name: trained,
        "random-init": build_method(name, config, shape, world).encoder.eval(),
        "identity": None,
    }
    sets = read_set(data, config)
    results = evaluate_tracking(arms, sets, config, folder, world.device, console)
    _keep(results, folder, next(iter(sets)), config, console)
    return results


def _keep(
    results: dict[str, Any], folder: Path, data: str, config: TrainConfig, console: Console
) -> None:
    results["trained_on"] = Path(config.data).name
    (folder / "transfer").mkdir(exist_ok=True)
    write_json(folder / "transfer" / f"{data}.json", results)
    print_tables(results, console)


def match_channels(data: Dataset, channels: int) -> Dataset:
    """The data set in grey, or its grey three times, as an encoder of `channels` wants it."""
    if data.channels == channels:
        return data

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
