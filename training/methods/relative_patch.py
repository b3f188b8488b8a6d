"""Relative patch location: which of the eight neighbours of a patch is another one?

Doersch et al. 2015, arXiv:1505.05192, section 3:

    for a batch of B images
        cut 3 x 3 patches with gaps, moved a little, each with one colour     views
        z = f(patch): the same network for every patch                        encoder
        (z of the centre, z of a neighbour) must tell which neighbour it is   head

Each patch's z is computed once, and all eight pairs of an image are asked in one pass (Kolesnikov
et al. 2019, arXiv:1901.09005, section 3.1).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops.training.augment.patches import TileRecipe, make_tiles, mosaic, plain_tiles
from sslops.training.config import TrainConfig
from sslops.training.methods.base import Batch, DataShape, Method
from sslops.training.methods.figures import Chart
from sslops.training.models import Projector, build_encoder, check_side

__all__ = ["RelativePatch", "RelativePatchConfig"]

GRID = 3
CENTRE = 4
NEIGHBOURS = (0, 1, 2, 3, 5, 6, 7, 8)  # label k is the tile NEIGHBOURS[k] of the grid
NAMES = ("upper left", "above", "upper right", "left", "right", "lower left", "below",
         "lower right")  # fmt: skip
SHOWN = 8  # images in the pictures


@dataclass(frozen=True)
class RelativePatchConfig(TrainConfig):
    """The method's own knobs; `views` are those of the control with labels alone."""

    tile: float = 0.75  # side of a patch, in shares of a cell (a third of the image's side)
    gap: float = 0.2  # between two patches at least, in shares of a cell
    jitter: float = 0.1  # within which a patch's place is drawn, in shares of a cell
    drop: float = 1.0  # share of the patches that keep one colour channel
    fill: Literal["noise", "copy"] = "noise"  # what their other channels hold
    normalise: bool = True  # mean and deviation of each patch
    coarse: float = 0.0  # share of the patches brought to half their size and back
    hidden: int = 256  # of the head

    unread: ClassVar[Mapping[str, str]] = {"views": "the control with labels"}
    guards: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gap": {"gap": 0.0},
        "jitter": {"jitter": 0.0},
        "colour drop": {"drop": 0.0},
        "tile normalisation": {"normalise": False},
    }


class RelativePatch(Method):
    """Encoder of patches and a head that names the neighbour.

    Args:
        config: hyper-parameters.
        shape: of the data set.
    """

    mean_loss: ClassVar[bool] = True
    hints: ClassVar[Mapping[str, str]] = {
        "chance": "the learning rate (--lr) and that patches are large enough to tell apart"
        " (--tile)",
        "shortcut": "that patches do not touch (--gap, --jitter) and that colour and light do not"
        " tell where one lies (--drop, --normalise); `sslops audit relative-patch` shows which",
    }

    def __init__(self, config: RelativePatchConfig, shape: DataShape) -> None:
        super().__init__()
        self.recipe = TileRecipe(
            grid=GRID,
            tile=config.tile,
            gap=config.gap,
            jitter=config.jitter,
            drop=config.drop,
            fill=config.fill,
            normalise=config.normalise,
            coarse=config.coarse,
        )
        tile = self.recipe.layout(shape.image_size).tile  # refuses before anything is made
        self.encoder = build_encoder(
            config.arch, shape.channels, shape.image_size, **config.encoder_options()
        )
        check_side("relative-patch", self.encoder, shape.channels, tile)
        self.head = Projector(
            2 * cast(int, self.encoder.dim), config.hidden, len(NEIGHBOURS), last_bn="none"
        )
        self.chance = math.log(len(NEIGHBOURS))

    def tiles(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """What the encoder sees of the images: [B, 9, C, t, t]."""
        return make_tiles(batch.images, self.recipe, generator)

    def views(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Tiles [B, 9, C, t, t], row by row."""
        return self.tiles(batch, generator)

    def parts(self, views: Tensor, size: int) -> list[Tensor]:
        """`size` images at a time."""
        return list(torch.split(views, size))

    def locate(self, tiles: Tensor) -> Tensor:
        """Logits [B, 8, 8]: of neighbour k of an image to be in each place."""
        z: Tensor = self.encoder(tiles.flatten(0, 1)).view(*tiles.shape[:2], -1)  # [B, 9, D]
        others = z[:, list(NEIGHBOURS)]
        pairs = torch.cat([z[:, CENTRE, None].expand_as(others), others], 2)  # [B, 8, 2 D]
        logits: Tensor = self.head(pairs.flatten(0, 1))
        return logits.view(*others.shape[:2], len(NEIGHBOURS))

    def step(self, views: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the eight pairs of every image."""
        logits = self.locate(views).flatten(0, 1).float()  # [B 8, 8]
        labels = torch.arange(len(NEIGHBOURS), device=logits.device).repeat(len(views))
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels), "accuracy": accuracy}

    def measure(self, batches: Iterable[Batch], generator: torch.Generator) -> dict[str, float]:
        """Scores of `step`, and what guessing would have."""
        return {**super().measure(batches, generator), "guessing": 1 / len(NEIGHBOURS)}

    def pictures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The patches of each image in their own colours, and as the network sees them."""
        twin = torch.Generator(generator.device)
        twin.set_state(generator.get_state())
        plain = plain_tiles(batch.images, self.recipe, twin)
        return {"patches": torch.stack([mosaic(plain), mosaic(self.tiles(batch, generator))])}

    def figures(self, batch: Batch, generator: torch.Generator) -> dict[str, Chart | Tensor]:
        """Where the network puts each patch, and how often it is right about each place."""
        twin = torch.Generator(generator.device)
        twin.set_state(generator.get_state())
        share = self.locate(self.tiles(batch, generator)).float().softmax(2)  # [B, 8, 8]
        named = share.argmax(2)
        shown = torch.linspace(0, len(share) - 1, SHOWN).long()  # data may be sorted by class
        plain = plain_tiles(batch.images, self.recipe, twin)[shown]
        right = (named == torch.arange(8, device=named.device)).float().mean(0)
        places = [k - 0.5 for k in range(1, 9)]
        return {
            "patches-put-in-place": torch.stack(
                [mosaic(plain), mosaic(_placed(plain, share[shown]))]
            ),
            "places-taken-for": _heat(named),
            "right-by-place": Chart(
                "bars",
                {"right": list(zip(places, right.tolist(), strict=True))},
                x_label="place",
                y_label="share of right answers",
                caption="Of patches of training images; guessing has 0.125. Places: "
                + ", ".join(f"{k} {name}" for k, name in enumerate(NAMES, 1))
                + ".",
            ),
        }


def _placed(tiles: Tensor, share: Tensor) -> Tensor:
    """Each place shows the neighbour that gives it most of its own probability; white if none does.

    Args:
        tiles: [B, 9, C, t, t].
        share: [B, 8, 8], of neighbour k to be in each place.
    """
    named, sure = share.argmax(2), share.amax(2)
    out = torch.ones_like(tiles)
    out[:, CENTRE] = tiles[:, CENTRE]
    for image in range(len(tiles)):
        for k in sure[image].argsort().tolist():  # the surest comes last and stays
            out[image, NEIGHBOURS[named[image, k]]] = tiles[image, NEIGHBOURS[k]]
    return out


def _heat(named: Tensor) -> Tensor:
    """How often each true place is taken for each place: [1, 8, 1, 3, 3], the centre dark."""
    counts = F.one_hot(named, len(NEIGHBOURS)).float().mean(0)  # [8, 8]
    grids = counts.new_zeros(8, GRID * GRID)
    grids[:, list(NEIGHBOURS)] = counts / counts.amax(1, keepdim=True)
    return grids.view(1, 8, 1, GRID, GRID)
