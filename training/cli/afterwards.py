"""What can be done with a run folder once its training is over."""

from pathlib import Path
from typing import Any

import torch

from sslops.training.distributed.process import World, join
from sslops.training.engine.setup import load_data, shape_of
from sslops.training.evaluate.run import evaluate_and_report
from sslops.training.evaluate.transfer import transfer
from sslops.training.loggers.console import Console
from sslops.training.report.summary import print_closing
from sslops.training.storage import encoder as export
from sslops.training.storage.folder import read_config
from sslops.training.storage.state import read_checkpoint

__all__ = ["evaluate_again", "evaluate_elsewhere", "export_checkpoint"]


def evaluate_again(folder: Path, device: str, console: Console) -> dict[str, Any]:
    """Evaluate a run's exported encoder, as at the end of its training.

    Raises:
        FileNotFoundError: it is no run folder, or its training is not over.
        EvaluationFailed: the evaluation raised.
    """
    name, config = read_config(folder)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    world = World(0, 1, join(device).device)
    results = evaluate_and_report(folder, world, console, again=True)
    print_closing(name, config, folder, results, console, "eval")
    return results


def evaluate_elsewhere(
    folder: Path, data: str, root: str | None, device: str, console: Console
) -> dict[str, Any]:
    """Probe a run's encoder on another data set; see `transfer`."""
    _, config = read_config(folder)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return transfer(folder, data, root, World(0, 1, join(device).device), console)


def export_checkpoint(folder: Path, which: str, path: Path) -> Path:
    """Write the encoder of the checkpoint WHICH to `path`, without the data it was trained on.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    name, config = read_config(folder)
    saved = read_checkpoint(folder / "checkpoint" / which)
    shape = saved.shape or export.read_shape(folder)
    if shape is None:  # a run from before checkpoints held it, and that did not come to its end
        shape = shape_of(load_data(config)[0])
    encoder = export.fresh_encoder(config, shape)
    saved.fill(encoder)
    facts = {"method": name, "data": config.data, "steps": saved.step}
    return export.save_encoder(path, encoder, config, shape, **facts)
