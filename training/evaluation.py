"""After training: the method beside its controls, pictures, numbers, report."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sslops.training import export
from sslops.training.config import TrainConfig
from sslops.training.console import Console
from sslops.training.data import Dataset, Split, load, split_validation, subset
from sslops.training.distributed import World, seed_everything
from sslops.training.folder import read_config, read_json, write_json
from sslops.training.loop import Loop
from sslops.training.methods import DataShape, Method, find_method
from sslops.training.methods.supervised import Supervised, supervised_config

__all__ = [
    "build_method",
    "evaluate_run",
    "load_data",
    "shape_of",
    "train_supervised",
]

SUPERVISED = "supervised.safetensors"


def load_data(config: TrainConfig) -> tuple[Dataset, Split, Split | None]:
    """The data set, and the training images divided into those trained on and those measured on."""
    data = load(config.data, root=config.data_root, size=config.image_size)
    train, validation = data.train, None
    if config.train_images is not None and config.train_images < len(train.images):
        train = subset(train, config.train_images, config.seed)
    if config.validation > 0 and config.knn_every > 0 and train.labels is not None:
        train, validation = split_validation(train, config.validation, config.seed)
    return data, train, validation


def shape_of(data: Dataset) -> DataShape:
    """What networks need to know of a data set."""
    return DataShape(data.channels, data.image_size, len(data.classes))


def build_method(name: str, config: TrainConfig, shape: DataShape, world: World) -> Method:
    """A method with freshly drawn weights: the same ones for the same seed."""
    seed_everything(config.seed)
    method = find_method(name).build(config, shape).to(world.device)
    method.name, method.shape = name, shape
    if config.channels_last:
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return method


def train_supervised(
    config: TrainConfig, train: Split, shape: DataShape, world: World, console: Console
) -> nn.Module:
    """The encoder of `config` trained with labels, by the same loop, views and optimiser."""
    config = supervised_config(config)
    seed_everything(config.seed)
    method = Supervised(config, shape).to(world.device)
    if config.channels_last:
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    Loop(method, train, config, world, console=console).run()
    return method.encoder


def evaluate_run(folder: Path, world: World, console: Console) -> dict[str, Any]:
    """Evaluate the exported encoder of a run against controls; write results.json and pictures.

    The controls are raw pixels, the same encoder untrained, and the same encoder trained with
    labels (kept in the folder, so that a second evaluation does not train it again).

    Returns:
        What results.json holds.
    """
    from sslops.training.evaluate import evaluate
    from sslops.training.report import write_pictures

    started = time.perf_counter()
    name, config = read_config(folder)
    data, train, _ = load_data(config)
    shape = shape_of(data)
    cost = read_json(folder / "results.json").get("cost", {})

    trained = export.load_encoder(folder).to(world.device)
    untrained = build_method(name, config, shape, world).encoder.eval()
    arms: dict[str, nn.Module | None] = {name: trained, "random-init": untrained, "pixels": None}
    if name != "supervised" and train.labels is not None:
        arms["supervised"] = _supervised(folder, config, train, shape, world, console)
    console.print(f"evaluating {', '.join(arms)} ...")
    results: dict[str, Any] = evaluate(
        arms,
        data,
        seed=config.seed,
        max_train=config.eval_train,
        max_test=config.eval_test,
        device=world.device,
    )
    results["cost"] = {**cost, "evaluation_seconds": time.perf_counter() - started}
    write_json(folder / "results.json", results)

    write_pictures(folder, data, arms, None, config.seed, points=config.tsne_images)
    return results


def _supervised(
    folder: Path,
    config: TrainConfig,
    train: Split,
    shape: DataShape,
    world: World,
    console: Console,
) -> nn.Module:
    path = folder / "checkpoint" / SUPERVISED
    if not path.is_file():
        console.print("training the supervised control ...")
        updating = Console(console.stream, quiet=console.quiet or not console.live)
        encoder = train_supervised(config, train, shape, world, updating)
        export.save_encoder(path, encoder, config, shape, method="supervised", data=config.data)
    return export.load_encoder(path).to(world.device)
