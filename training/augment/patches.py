"""Tiles of a grid, batched: what patch location and jigsaw puzzles are made of.

Doersch et al. 2015, arXiv:1505.05192, section 3; Noroozi & Favaro 2016, arXiv:1603.09246, section
3.3. What each change is for, as each can be left out:

    gap, jitter    lines and textures that go on across a border tell which tiles are neighbours
    colour drop    lenses magnify colours differently, so their offset tells where in the photograph
    normalisation  neighbours are about equally bright and contrasted
"""

from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops.training.augment.colour import to_grey
from sslops.training.augment.draw import Draw
from sslops.training.augment.statistics import MEAN, STD

__all__ = ["Layout", "TileRecipe", "make_tiles", "mosaic", "plain_tiles"]

FLOOR = 0.02  # of a tile's deviation: five of 255 levels; noise of flat tiles is not blown up
NOISE = 0.1  # deviation of what stands in for a channel, in that of the others


class Layout(NamedTuple):
    """A grid in pixels: side of a tile, least gap between two, and range of a tile's offset."""

    grid: int
    tile: int
    gap: int
    jitter: int

    @property
    def pitch(self) -> int:
        """From a cell's first pixel to that of the next one."""
        return self.tile + self.jitter + self.gap

    @property
    def side(self) -> int:
        """Of the whole grid."""
        return self.grid * self.pitch - self.gap


@dataclass(frozen=True)
class TileRecipe:
    """How tiles are cut from an image; sides are shares of a cell, 1 / grid of the image's side.

    Attributes:
        grid: n, tiles a side.
        tile: side of a tile.
        gap: what lies between two tiles at least; 0 for none.
        jitter: each tile lies uniformly in 0..jitter right of and below its corner of the cell; 0
            for none. The whole grid lies anywhere in the image, as far as it has room.
        flip: probability of a mirror image.
        grey: share of the images that lose their colour.
        drop: share of the tiles that keep one channel, drawn for each tile.
        fill: what the other channels hold then: noise, or a copy of the kept one.
        normalise: each channel of each tile gets the mean and deviation that encoders expect of
            images.
        coarse: share of the tiles that are brought to half their size and back.
    """

    grid: int = 3
    tile: float = 0.75
    gap: float = 0.2
    jitter: float = 0.1
    flip: float = 0.5
    grey: float = 0.0
    drop: float = 0.0
    fill: Literal["noise", "copy"] = "noise"
    normalise: bool = True
    coarse: float = 0.0

    def __post_init__(self) -> None:
        if self.grid < 2:
            raise ValueError(f"tiles: grid must be at least 2, got {self.grid}")
        if self.fill not in ("noise", "copy"):
            raise ValueError(f"tiles: fill must be noise or copy, got {self.fill!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not 0 <= value <= 1:
                raise ValueError(f"tiles: {field.name} must be in [0, 1], got {value}")
        cells = self.grid * (self.tile + self.jitter) + (self.grid - 1) * self.gap
        if cells > self.grid + 1e-9:
            raise ValueError(
                f"tiles: {self.grid} tiles of {self.tile:g} with jitter {self.jitter:g} and gaps of"
                f" {self.gap:g} between them must fit into {self.grid} cells, got {cells:g}"
            )

    def layout(self, size: int) -> Layout:
        """The grid in pixels for images whose shorter side has `size`.

        Raises:
            ValueError: a tile, or a gap or jitter that is asked for, has no pixel.
        """
        n, cell = self.grid, size / self.grid
        gap, jitter, tile = (
            int(getattr(self, name) * cell + 0.5) for name in ("gap", "jitter", "tile")
        )
        tile = min(tile, (size - (n - 1) * gap) // n - jitter)  # what rounding adds, tiles lose
        for name, count in (("gap", gap), ("jitter", jitter), ("tile", tile)):
            share = getattr(self, name)
            if count < 1 and (share or name == "tile"):
                raise ValueError(
                    f"tiles: {name} must have a pixel, got {share:g} of a cell of {cell:.1f} pixels"
                    f" ({size} pixels / {n})"
                )
        return Layout(n, tile, gap, jitter)


def make_tiles(images: Tensor, recipe: TileRecipe, generator: torch.Generator) -> Tensor:
    """Cut the tiles of each image, row by row; equal generator states give equal bits.

    Args:
        images: [B, C, H, W] uint8, or float in [0, 1]; C is 1 or 3. Grey images have no colour to
            drop.
        recipe: how.
        generator: best on the CPU; a `SharedGenerator` gives each process its own images' draws.

    Returns:
        [B, n * n, C, t, t] float32 on the images' device; in [0, 1] unless normalised.

    Raises:
        TypeError: `images` is neither uint8 nor floating.
        ValueError: wrong shape, or images too small for the recipe.
    """
    if images.dtype is not torch.uint8 and not images.is_floating_point():
        raise TypeError(f"tiles: images must be uint8 or floating, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(
            f"tiles: images must be [B, C, H, W] with C = 1 or 3, got shape {tuple(images.shape)}"
        )
    (B, C, H, W), n = images.shape, recipe.grid
    layout = recipe.layout(min(H, W))
    with torch.no_grad():
        draw = Draw(B, generator)
        # The same number of draws whatever is switched off: recipes can be compared tile by tile.
        start, offset = draw.uniform(0, 1, 2), draw.uniform(0, 1, 2, n * n)
        mirrored, grey = draw.coin(recipe.flip), draw.coin(recipe.grey)
        dropped, kept = draw.uniform(0, 1, n * n) < recipe.drop, draw.uniform(0, C, n * n)
        coarse = draw.uniform(0, 1, n * n) < recipe.coarse

        def here(x: Tensor) -> Tensor:
            return x.to(images.device, non_blocking=True)

        images = torch.where(here(mirrored)[:, None, None, None], images.flip(3), images)
        x = _cut(images, layout, here(start), here(offset))
        if C > 1 and recipe.grey:
            chosen = here(torch.nonzero(grey).flatten())
            x[chosen] = to_grey(x[chosen].flatten(0, 1)).view(-1, *x.shape[1:])
        x = x.flatten(0, 1)  # [B n^2, C, t, t]
        if recipe.coarse:
            chosen = here(torch.nonzero(coarse.flatten()).flatten())
            x[chosen] = _halved(x[chosen])
        if recipe.normalise:
            x = _normalised(x)
        if C > 1 and recipe.drop:
            channel = here(kept.long().flatten())
            noise = draw.normal(n * n, *x.shape[1:]) if recipe.fill == "noise" else None
            noise = None if noise is None else here(noise.flatten(0, 1))
            x = torch.where(
                here(dropped.flatten())[:, None, None, None], _one_channel(x, channel, noise), x
            )
        return x.view(B, n * n, *x.shape[1:])


def plain_tiles(images: Tensor, recipe: TileRecipe, generator: torch.Generator) -> Tensor:
    """The same tiles as of `make_tiles` from an equal generator, in their own colours and light."""
    return make_tiles(images, replace(recipe, drop=0.0, coarse=0.0, normalise=False), generator)


def mosaic(tiles: Tensor, line: int = 1) -> Tensor:
    """Tiles [N, n * n, C, t, t] side by side, row by row, with black lines: [N, C, s, s]."""
    N, count, C, t, _ = tiles.shape
    n = round(count**0.5)
    framed = F.pad(tiles.clamp(0, 1), (0, line, 0, line))
    rows = framed.view(N, n, n, C, t + line, t + line).permute(0, 3, 1, 4, 2, 5)
    side = n * (t + line)
    return rows.reshape(N, C, side, side)[..., : side - line, : side - line]


def _cut(images: Tensor, layout: Layout, start: Tensor, offset: Tensor) -> Tensor:
    """Tiles [B, n^2, C, t, t] float32 in [0, 1].

    Args:
        images: [B, C, H, W].
        layout: of the grid.
        start: [B, 2] in [0, 1): where the grid begins, in shares of the room it has.
        offset: [B, 2, n^2] in [0, 1): where in its cell a tile begins.
    """
    (B, _, H, W), n, t = images.shape, layout.grid, layout.tile
    room = torch.tensor([H - layout.side + 1, W - layout.side + 1], device=images.device)
    corner = torch.arange(n * n, device=images.device)
    corner = torch.stack([corner // n, corner % n]) * layout.pitch  # [2, n^2]
    first = (start * room).long()[:, :, None] + (offset * (layout.jitter + 1)).long() + corner
    index = first[..., None] + torch.arange(t, device=images.device)  # [B, 2, n^2, t]
    batch = torch.arange(B, device=images.device)[:, None, None, None]
    x = images.permute(0, 2, 3, 1)[batch, index[:, 0, :, :, None], index[:, 1, :, None, :]]
    x = x.permute(0, 1, 4, 2, 3)
    return x.float().div_(255) if x.dtype is torch.uint8 else x.float()


def _halved(x: Tensor) -> Tensor:
    """[N, C, t, t] at half its side and back."""
    small = F.avg_pool2d(x, 2, ceil_mode=True)
    return F.interpolate(small, x.shape[2:], mode="bilinear")


def _normalised(x: Tensor) -> Tensor:
    """Mean and deviation of each channel of each tile [N, C, t, t] as `Standardise` expects."""
    C = x.shape[1]
    mean = torch.tensor(MEAN[C], device=x.device)[:, None, None]
    std = torch.tensor(STD[C], device=x.device)[:, None, None]
    centred = x - x.mean((2, 3), keepdim=True)
    deviation = centred.square().mean((2, 3), keepdim=True).sqrt()
    return centred.div_(deviation.clamp_min(FLOOR)).mul_(std).add_(mean)


def _one_channel(x: Tensor, channel: Tensor, noise: Tensor | None) -> Tensor:
    """`x` [N, C, t, t] with nothing left of the channels but `channel` [N].

    Args:
        x: tiles.
        channel: the one that each keeps.
        noise: [N, C, t, t] for the others; None puts a copy of the kept one there.
    """
    index = channel[:, None, None, None].expand(-1, 1, *x.shape[2:])
    kept = x.gather(1, index)
    if noise is None:
        return kept.expand_as(x)
    C = x.shape[1]
    mean = torch.tensor(MEAN[C], device=x.device)[:, None, None]
    std = torch.tensor(STD[C], device=x.device)[:, None, None]
    return (noise * (NOISE * std) + mean).scatter(1, index, kept)
