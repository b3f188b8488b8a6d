"""Jigsaw puzzles: which of P orders do the shuffled tiles of an image have?

Noroozi & Favaro 2016, arXiv:1603.09246, section 3:

    for a batch of B images
        cut each into n x n tiles, with gaps, each with its own light     views
        z = f(tile): the same network for every tile                      encoder, embed
        a permutation drawn for the image puts the tiles in its order     views
        the concatenated z must tell which of the P permutations it was   head

A tile's z does not depend on its place, so each is computed once and used in several puzzles
(Kolesnikov et al. 2019, arXiv:1901.09005, section 3.1).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslops.training.augment.draw import Draw
from sslops.training.augment.patches import TileRecipe, make_tiles, mosaic, plain_tiles
from sslops.training.config import TrainConfig
from sslops.training.methods.base import Batch, DataShape, Method
from sslops.training.methods.figures import Chart
from sslops.training.methods.permutations import permutation_set
from sslops.training.models import Projector, build_encoder, check_side

__all__ = ["Jigsaw", "JigsawConfig"]

SHOWN = 8  # puzzles in the pictures


@dataclass(frozen=True)
class JigsawConfig(TrainConfig):
    """Jigsaw's own knobs; `views` are those of the control with labels alone."""

    grid: int = 2  # n, 2 or 3 tiles a side
    permutations: int = 24  # P, classes: up to 24 of 2 x 2 tiles, up to 2000 of 3 x 3
    puzzles: int = 8  # permutations of an image in each step
    tile: float = 0.75  # side of a tile, in shares of a cell (the image's side / grid)
    gap: float = 0.2  # between two tiles at least, in shares of a cell
    jitter: float = 0.1  # within which a tile's place is drawn, in shares of a cell
    grey: float = 0.3  # share of the images without colour
    normalise: bool = True  # mean and deviation of each tile
    embed: int = 128  # numbers of each tile that the head sees
    hidden: int = 512  # of the head

    unread: ClassVar[Mapping[str, str]] = {"views": "the control with labels"}
    guards: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gap": {"gap": 0.0},
        "jitter": {"jitter": 0.0},
        "grey": {"grey": 0.0},
        "tile normalisation": {"normalise": False},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.puzzles <= self.permutations:
            raise ValueError(
                f"config: puzzles must be in 1..permutations = {self.permutations}, got"
                f" {self.puzzles}"
            )


class Jigsaw(Method):
    """Encoder of tiles and a head that names the permutation.

    Args:
        config: hyper-parameters.
        shape: of the data set.
    """

    mean_loss: ClassVar[bool] = True
    hints: ClassVar[Mapping[str, str]] = {
        "chance": "the learning rate (--lr) and that each tile has its own mean and deviation"
        " (--normalise): puzzles of plain tiles are learnt much later",
        "shortcut": "that tiles do not touch (--gap, --jitter) and that colour and light do not"
        " tell which are neighbours (--grey, --normalise); `sslops audit jigsaw` shows which",
    }
    permutations: Tensor

    def __init__(self, config: JigsawConfig, shape: DataShape) -> None:
        super().__init__()
        self.recipe = TileRecipe(
            grid=config.grid,
            tile=config.tile,
            gap=config.gap,
            jitter=config.jitter,
            grey=config.grey,
            normalise=config.normalise,
        )
        tile = self.recipe.layout(shape.image_size).tile  # refuses before anything is made
        self.puzzles = config.puzzles
        self.register_buffer("permutations", permutation_set(config.grid, config.permutations))
        self.encoder = build_encoder(
            config.arch, shape.channels, shape.image_size, **config.encoder_options()
        )
        check_side("jigsaw", self.encoder, shape.channels, tile)
        self.embed = nn.Linear(cast(int, self.encoder.dim), config.embed)
        self.head = Projector(
            config.grid**2 * config.embed, config.hidden, config.permutations, last_bn="none"
        )
        self.chance = math.log(config.permutations)

    def tiles(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """What the encoder sees of the images: [B, n * n, C, t, t]."""
        return make_tiles(batch.images, self.recipe, generator)

    def views(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tiles [B, n * n, C, t, t], and the permutations of each image's puzzles [B, M]."""
        tiles = self.tiles(batch, generator)
        # The largest of random numbers: M different ones, drawn for each image.
        scores = Draw(len(tiles), generator).uniform(0, 1, len(self.permutations))
        return tiles, scores.topk(self.puzzles, 1).indices.to(tiles.device, non_blocking=True)

    def parts(self, views: tuple[Tensor, Tensor], size: int) -> list[tuple[Tensor, Tensor]]:
        """`size` images at a time."""
        return list(zip(*(torch.split(view, size) for view in views), strict=True))

    def solve(self, tiles: Tensor, which: Tensor) -> Tensor:
        """Logits [B, M, P] of puzzles whose place p shows tile permutations[which][p]."""
        B, count = tiles.shape[:2]
        z: Tensor = self.embed(self.encoder(tiles.flatten(0, 1))).view(B, count, -1)
        order = self.permutations[which]  # [B, M, n^2]
        image = torch.arange(B, device=z.device)[:, None, None]
        puzzles = z[image, order].flatten(2)  # [B, M, n^2 E]
        logits: Tensor = self.head(puzzles.flatten(0, 1))
        return logits.view(*which.shape, len(self.permutations))

    def step(self, views: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of all puzzles of all images."""
        tiles, which = views
        logits = self.solve(tiles, which).flatten(0, 1).float()
        labels = which.flatten()
        named = logits.argmax(1)
        right = self.permutations[named] == self.permutations[labels]  # [B M, n^2]
        return {
            "loss": F.cross_entropy(logits, labels),
            "accuracy": (named == labels).float().mean(),
            "tiles_in_place": right.float().mean(),
        }

    def measure(self, batches: Iterable[Batch], generator: torch.Generator) -> dict[str, float]:
        """Scores of `step`, and what guessing would have."""
        return {**super().measure(batches, generator), "guessing": 1 / len(self.permutations)}

    def pictures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Two puzzles of each image as the network sees them, below what they are made from."""
        tiles, which = self.views(batch, generator)
        rows = [tiles, *(_shuffled(tiles, self.permutations[which[:, m]]) for m in (0, -1))]
        return {"puzzles": torch.stack([mosaic(row) for row in rows])}

    def figures(self, batch: Batch, generator: torch.Generator) -> dict[str, Chart | Tensor]:
        """Puzzles, put back as the network says, and solutions; how many tiles it places."""
        twin = torch.Generator(generator.device)
        twin.set_state(generator.get_state())
        tiles, which = self.views(batch, generator)
        named = self.solve(tiles, which).argmax(2)[:, 0]  # [B]: of the first puzzle
        order, guess = self.permutations[which[:, 0]], self.permutations[named]
        placed = (order == guess).sum(1)
        count = tiles.shape[1]
        shown = torch.linspace(0, len(tiles) - 1, SHOWN).long()  # data may be sorted by class
        plain = plain_tiles(batch.images, self.recipe, twin)
        return {
            "puzzles-put-back-solutions": _rows(plain[shown], order[shown], guess[shown]),
            "tiles-in-their-place": Chart(
                "bars",
                {
                    "share of puzzles": [
                        (k - 0.5, float((placed == k).float().mean())) for k in range(count + 1)
                    ]
                },
                x_label="tiles put in their place",
                y_label="share of puzzles",
                caption="Of puzzles of training images, put back by the permutation that the"
                " network names.",
            ),
        }


def _shuffled(tiles: Tensor, order: Tensor) -> Tensor:
    """Tiles [B, n, ...] in the order [B, n]: place p shows tile order[p]."""
    return tiles[torch.arange(len(tiles), device=tiles.device)[:, None], order]


def _rows(tiles: Tensor, order: Tensor, guess: Tensor) -> Tensor:
    """Puzzles, what they become if `guess` were their order, and solutions: [3, B, C, s, s]."""
    puzzle = _shuffled(tiles, order)
    back = _shuffled(puzzle, guess.argsort(1))  # the tile at place p belongs to place guess[p]
    return torch.stack([mosaic(row) for row in (puzzle, back, tiles)])
