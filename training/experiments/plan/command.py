"""What `sslops plan` says."""

from dataclasses import dataclass

import torch

from sslops.training.config import TrainConfig
from sslops.training.distributed.machine import resolve_precision
from sslops.training.distributed.process import World, join
from sslops.training.evaluate.table import align
from sslops.training.experiments.plan.probe import images_per_second
from sslops.training.experiments.plan.propose import Option, propose
from sslops.training.loggers.words import count
from sslops.training.methods import DataShape
from sslops.training.run.packages import need

__all__ = ["PlanOptions", "describe", "gib"]

GIB = 1 << 30


@dataclass(frozen=True)
class PlanOptions:
    """What the plan is for."""

    memory: float | None = None  # GiB of a device, to be fitted in
    channels: int = 3  # of images of --image-size, where no --data is named
    classes: int = 1000  # of the same
    images: int | None = None  # of an epoch; the data set's if unset
    processes: int = 1  # devices among which the batch is divided
    probe: bool = True  # measure the time of an update on this machine

    def __post_init__(self) -> None:
        if self.memory is not None and not self.memory > 0:
            raise ValueError(f"plan: memory must be positive, got {self.memory}")
        for name in ("images", "processes", "channels", "classes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"plan: {name} must be at least 1, got {value}")


def describe(
    name: str, config: TrainConfig, options: PlanOptions, *, load: bool = True
) -> tuple[str, bool]:
    """The plan as text, and whether something fits.

    Args:
        name: of the method.
        config: what is to be run.
        options: what the plan is for.
        load: look at the data set; else the images are of the options' channels and classes, and
            of the config's size.

    Raises:
        ValueError: the batch cannot be divided, or the method refuses its settings.
    """
    if config.batch % options.processes:
        raise ValueError(
            f"plan: batch must be a multiple of the {options.processes} processes, got"
            f" {config.batch}"
        )
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    images = options.images
    if not load:
        assert config.image_size is not None
        shape = DataShape(options.channels, config.image_size, options.classes)
    else:
        need("plan of a data set")
        from sslops.training.engine.setup import load_data, shape_of

        data, split, _ = load_data(config)
        shape, images = shape_of(data), images or len(split)
    world = World(0, 1, join(config.device).device)
    precision = resolve_precision(config.precision, world.device)
    limit = None if options.memory is None else int(options.memory * GIB)
    found = propose(name, config, shape, limit, precision=precision, processes=options.processes)
    chosen = found[-1]
    fits = limit is None or chosen.memory.total <= limit

    share = f", {config.batch // options.processes} a process" if options.processes > 1 else ""
    side = shape.image_size
    what = f"sound at {shape.rate:,} Hz" if shape.rate else f"{shape.channels} x {side} x {side} px"
    lines = [
        f"sslops plan {name}: {config.arch}, {what}, batch {config.batch}{share},"
        f" {precision}, {config.optimizer}",
        "peak memory of an update in a process, without the data set and without what libraries"
        " load:\n",
        _table(found, limit),
    ]
    if not fits:
        name_, size = chosen.memory.largest, chosen.memory.parts[chosen.memory.largest]
        lines.append(
            f"\nnothing fits {options.memory:.1f} GiB: {name_} take {gib(size)} at the least."
            " Try a smaller --batch, --arch or --image-size, or more --processes."
        )
        return "\n".join(lines), False
    parts = [f"{part} {gib(n)}" for part, n in chosen.memory.parts.items() if n >= GIB / 20]
    if parts:
        lines.append(f"\nof which   {', '.join(parts)}")
    if limit is not None:
        lines.append(f"use        {chosen.flags or 'it as it is'}")
    if options.probe:
        try:
            lines.append(_time(name, chosen.config, shape, world, images, options.processes))
        except ValueError as error:  # what the method says of every batch that was tried
            lines.append(f"time       not measured: {error}")
    return "\n".join(lines), True


def gib(size: float) -> str:
    """One decimal; nothing is called nought."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 20 else "below 0.1 GiB"


def _table(found: list[Option], limit: int | None) -> str:
    rows = [["", "peak", "mostly", *([] if limit is None else [f"fits {gib(limit)}"])]]
    for option in found:
        memory = option.memory
        percent = 100 * memory.parts[memory.largest] // memory.total
        row = [option.flags or "as asked", gib(memory.total), f"{memory.largest} {percent} %"]
        if limit is not None:
            row.append("yes" if memory.total <= limit else "no")
        rows.append(row)
    return align(rows)


def _time(
    name: str,
    config: TrainConfig,
    shape: DataShape,
    world: World,
    images: int | None,
    processes: int,
) -> str:
    rate, size = images_per_second(name, config, shape, world)
    text = f"time       {rate * processes:,.3g} images/s by an update of {size} images on"
    text += f" {world.device}, {count(torch.get_num_threads(), 'threads')}"
    if processes > 1:
        text += f", times {processes}"
    if images is None:
        return text + "; give --images for the time of an epoch"
    seconds = images / (rate * processes)
    epoch = f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"
    return text + f": {epoch} an epoch of {images:,} images"
