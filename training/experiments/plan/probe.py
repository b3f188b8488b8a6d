"""How long an update takes on this machine."""

import time
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from sslops.training.config import TrainConfig
from sslops.training.distributed.machine import resolve_precision
from sslops.training.distributed.process import World
from sslops.training.engine.optim import make_optimizer
from sslops.training.engine.setup import build_method
from sslops.training.engine.step import make_step
from sslops.training.experiments.plan.simulate import make_batch
from sslops.training.loggers.progress import working
from sslops.training.methods import DataShape

__all__ = ["Updates", "images_per_second"]

FEW, ENOUGH = 4, 16  # images of an update, few enough for any memory
PATIENCE = 2.0  # seconds of an update after which no larger one is tried


class Updates:
    """The loop's updates on random images.

    Args:
        name: of the method.
        config: its batch is that of this process.
        shape: of the images.
        world: this process alone; gives the device.
    """

    def __init__(self, name: str, config: TrainConfig, shape: DataShape, world: World) -> None:
        self.config, self.shape, self.device = config, shape, world.device
        self.method = build_method(name, config, shape, world).train()
        precision = resolve_precision(config.precision, world.device)
        self.compute = make_step(self.method, config, world, precision)
        self.optimizer = make_optimizer(
            config.optimizer,
            self.method.optimizer_groups(),
            lr=1e-4,
            weight_decay=0.0,
            momentum=config.momentum,
        )
        self.generator = torch.Generator().manual_seed(0)
        self.step = 0

    def __call__(self) -> None:
        """One update, with the drawing of its views."""
        batch = make_batch(self.shape, self.config.batch, self.device)
        views = self.method.views(batch, self.generator)
        self.method.before_step(self.step, 2)
        self.optimizer.zero_grad(set_to_none=True)
        self.compute(views, _ignore)
        self.optimizer.step()
        self.method.after_step(self.step)
        self.step += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@working("measuring the time of an update")
def images_per_second(
    name: str, config: TrainConfig, shape: DataShape, world: World
) -> tuple[float, int]:
    """Of one process, by one timed update after another one.

    Returns:
        The rate, and the images of the update: 4, or 16 where that takes no more than seconds; more
        where the method refuses a batch that small.

    Raises:
        ValueError: it refuses the whole batch too.
    """
    images = min(FEW, config.batch)
    while True:
        try:
            size, seconds = _timed(name, config, shape, world, images)
            break
        except ValueError:
            if images == config.batch:
                raise
        images = min(2 * images, config.batch)
    if size < ENOUGH and seconds <= PATIENCE:
        with suppress(ValueError):
            size, seconds = _timed(name, config, shape, world, ENOUGH)
    return size / seconds, size


def _timed(
    name: str, config: TrainConfig, shape: DataShape, world: World, images: int
) -> tuple[int, float]:
    """Images and seconds of the second of two updates of at most `images`."""
    micro, size = config.micro_batch, min(config.batch, images)
    if micro is not None:
        micro = min(micro, images // 2)
        size = min(config.batch, 2 * micro)
    update = Updates(name, replace(config, batch=size, micro_batch=micro), shape, world)
    update()
    start = time.perf_counter()
    update()
    return size, time.perf_counter() - start


def _ignore(loss: Tensor) -> None:
    """The probe looks at no loss."""
