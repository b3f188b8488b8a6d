"""What can be done with a run folder once its training is over."""

from pathlib import Path
from typing import Any

import torch

from sslops.training.distributed.process import World, join
from sslops.training.engine.setup import DataSource, load_data, shape_of
from sslops.training.evaluate.baselines import kept_control
from sslops.training.evaluate.rotnet import RotNetOptions, rotnet, rotnet_table
from sslops.training.evaluate.transfer import load_other, transfer
from sslops.training.loggers.console import Console
from sslops.training.report.summary import print_closing, print_tables
from sslops.training.run.run import evaluate_and_report, weights_are_safe
from sslops.training.storage.encoder import (
    Trained,
    fresh_encoder,
    read_shape,
    read_trained,
    save_encoder,
)
from sslops.training.storage.folder import read_config, read_json
from sslops.training.storage.older import today_results
from sslops.training.storage.state import read_checkpoint

__all__ = [
    "evaluate_again",
    "evaluate_elsewhere",
    "evaluate_few_labels",
    "export_checkpoint",
]


def evaluate_again(folder: Path, device: str, console: Console) -> dict[str, Any]:
    """Evaluate a run's exported encoder, as at the end of its training.

    Raises:
        FileNotFoundError: it is no run folder, or its training is not over.
        EvaluationFailed: the evaluation raised.
    """
    trained, world = _trained(folder, device)
    with weights_are_safe(folder, console, again=True):
        before = today_results(read_json(folder / "results.json"))
        data, train, _ = load_data(trained.config)
        results = evaluate_and_report(trained, data, train, before, world, console)
    print_closing(trained.name, trained.config, folder, results, console, "eval")
    return results


def evaluate_elsewhere(
    folder: Path, data: str, root: str | None, device: str, console: Console
) -> dict[str, Any]:
    """Probe a run's encoder on another data set; see `transfer`."""
    trained, world = _trained(folder, device)
    source = DataSource()
    shape = read_shape(folder)
    if shape is None:  # of older runs
        shape = shape_of(load_data(trained.config, source)[0])
    other = load_other(trained, shape, data, root, source)
    supervised = kept_control(folder, "supervised")
    results = transfer(trained, shape, other, world, console, supervised)
    print_tables(results, console)
    return results


def evaluate_few_labels(
    folder: Path, options: RotNetOptions, device: str, console: Console
) -> dict[str, Any]:
    """RotNet's protocol on a run folder: its table, its rotnet.json, and a new report."""
    trained, world = _trained(folder, device)
    results = rotnet(trained, load_data(trained.config)[0], options, world, console)
    console.print("\n" + rotnet_table(results))
    console.print(f"\nnumbers   {folder / 'rotnet.json'}")
    from sslops.training.report.report import write_report  # needs Pillow

    console.print(f"report    {write_report(folder).resolve()}")
    return results


def _trained(folder: Path, device: str) -> tuple[Trained, World]:
    """A run from the disk, on the device."""
    _, config = read_config(folder)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    world = World(0, 1, join(device).device)
    return read_trained(folder, world.device), world


def export_checkpoint(folder: Path, which: str, path: Path) -> Path:
    """Write the encoder of the checkpoint WHICH to `path`, without the data it was trained on.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    name, config = read_config(folder)
    saved = read_checkpoint(folder / "checkpoint" / which)
    shape = saved.shape or read_shape(folder)
    if shape is None:  # a run from before checkpoints held it, and that did not come to its end
        shape = shape_of(load_data(config)[0])
    encoder = fresh_encoder(config, shape)
    saved.fill(encoder)
    facts = {"method": name, "data": config.data, "steps": saved.step}
    return save_encoder(path, encoder, config, shape, **facts)
