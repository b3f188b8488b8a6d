"""What a method draws of itself, into its run folder: pictures/*.png and figures.json."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from sslops.training.data import Split, subset
from sslops.training.data.loader import Feed
from sslops.training.distributed.process import World
from sslops.training.loggers.progress import working
from sslops.training.methods import Batch, Method
from sslops.training.methods.figures import Chart
from sslops.training.storage.folder import write_json

__all__ = ["draw_figures", "draw_pictures"]

PICTURED = 12  # images in the method's own pictures
CHARTED = 512  # training images that the charts of its trained state are drawn from


def draw_pictures(method: Method, split: Split, folder: Path, world: World) -> None:
    """What the method sees, before it is trained."""
    # Its own generator: drawing pictures must not move the views of the training.
    batch, generator = _some(split, PICTURED, world), torch.Generator().manual_seed(0)
    _write_grids(method.pictures(batch, generator), folder)


@working("drawing")
@torch.no_grad()
def draw_figures(method: Method, split: Split, folder: Path, world: World) -> None:
    """What the method has learnt, when its training is over; puts it in eval mode."""
    method.eval()
    batch, generator = _some(split, CHARTED, world), torch.Generator().manual_seed(0)
    drawn = method.figures(batch, generator)
    _write_grids({name: each for name, each in drawn.items() if isinstance(each, Tensor)}, folder)
    charts = {name: asdict(each) for name, each in drawn.items() if isinstance(each, Chart)}
    if charts:
        write_json(folder / "figures.json", charts)


def _write_grids(grids: dict[str, Tensor], folder: Path) -> None:
    from sslops.training.evaluate.pictures import pairs_png

    (folder / "pictures").mkdir(exist_ok=True)
    for name, grid in grids.items():
        (folder / "pictures" / f"{name}.png").write_bytes(pairs_png(grid))


def _some(split: Split, images: int, world: World) -> Batch:
    """`images` of the split, the same ones whenever it is asked."""
    split = subset(split, min(images, len(split)), seed=0)
    return Feed(split, world.device)(torch.arange(len(split)))
