"""Moving shapes made here: videos with exact masks and key points, and nothing to fetch.

Every shape and the ground has a texture of its own in lightness, and colours that it says nothing
of: they are drawn anew for every video at one chroma, and even where one colour ends and the next
begins cannot be seen in grey. So no network can tell the colours of a frame from that frame; it has
to find each place again in another frame.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops.training.augment.lab import lab_to_rgb
from sslops.training.data.cache import Arrays, cached, fingerprint
from sslops.training.data.clips import Clips, Video
from sslops.training.data.dataset import Dataset, Split

__all__ = ["load_moving_shapes", "make_clip"]

VERSION = 1  # of what is drawn: older ones may be in the cache
SIZE = 64  # pixels a side
FRAMES = 16
TRAIN, TEST = 384, 32
OBJECTS = 3
POINTS = 3  # key points of each object
TEXELS = 128  # a side of each texture
CHROMA = 26.0  # all hues of it are inside sRGB at the lightnesses drawn
EXTENT = 1.6  # half the side of a texture in a layer's coordinates
# Cells of the noises in lightness, coarse and fine, and of those that divide the colours.
GROUND_CELLS, SHAPE_CELLS = ((48, 24, 12), 10), ((10, 5), 4)


def load_moving_shapes(size: int | None = None) -> Dataset:
    """416 videos of 16 frames, the same ones for every user; drawn once, then from the cache.

    Three shapes move, turn and grow over a ground that moves, and hide each other.

    Args:
        size: side of the frames in pixels; 64 if None.
    """
    size = SIZE if size is None else size
    key = fingerprint([], kind="moving-shapes", size=size, version=VERSION)
    arrays = cached(key, lambda: _draw_all(size))
    content = Video(*(torch.from_numpy(arrays[name]) for name in Video._fields))
    starts = torch.arange(TRAIN + TEST) * FRAMES
    clips = Clips(content, starts, torch.full_like(starts, FRAMES))
    return Dataset(
        name="moving-shapes",
        train=Split(clips[torch.arange(TRAIN)], None),
        test=Split(clips[torch.arange(TRAIN, TRAIN + TEST)], None),
        classes=(),
        licence="Apache-2.0",
        source="made by sslops",
    )


def _draw_all(size: int) -> Arrays:
    generator = torch.Generator().manual_seed(0)
    videos = [make_clip(generator, size, FRAMES) for _ in range(TRAIN + TEST)]
    parts = zip(Video._fields, zip(*videos, strict=True), strict=True)
    return {name: torch.cat(part).numpy() for name, part in parts}


def make_clip(generator: torch.Generator, size: int, frames: int) -> Video:
    """One video of `frames` frames with all that is known of it."""
    time = torch.linspace(-0.5, 0.5, frames)  # of 16 frames, whatever their number
    pixel = (torch.arange(size) + 0.5) / size
    grid = torch.stack(torch.meshgrid(pixel, pixel, indexing="xy"), 2)  # [H, W, (x, y)]
    lab = torch.zeros(frames, 3, size, size)
    masks = torch.zeros(frames, size, size, dtype=torch.uint8)
    points = []
    for number in range(OBJECTS + 1):
        place = _motion(generator, time, number > 0)
        local = place.undo(grid)  # [T, H, W, 2], in the layer's own coordinates
        colours = _surface(generator, local, *(SHAPE_CELLS if number else GROUND_CELLS))
        if number == 0:
            lab = colours
            continue
        outline = _Outline(generator)
        inside = outline.holds(local)  # [T, H, W]
        lab = torch.where(inside[:, None], colours, lab)
        masks[inside] = number
        points.append(place.do(outline.points(generator)))
    x = torch.cat(points, 1)  # [T, K, 2] in sides of a frame
    frames_rgb = lab_to_rgb(lab).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Video(frames_rgb, masks, x * size, _visible(x, masks))


class _Place:
    """Where a layer is in each frame: p = centre + scale R(angle) u."""

    def __init__(self, centre: Tensor, angle: Tensor, scale: Tensor) -> None:
        self.centre, self.scale = centre, scale  # [T, 2], [T]
        cos, sin = angle.cos(), angle.sin()
        self.turn = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)

    def do(self, u: Tensor) -> Tensor:
        """[K, 2] of the layer -> [T, K, 2] of the frame."""
        turned = torch.einsum("tij,kj->tki", self.turn, u)
        return self.centre[:, None] + self.scale[:, None, None] * turned

    def undo(self, p: Tensor) -> Tensor:
        """[H, W, 2] of the frame -> [T, H, W, 2] of the layer."""
        away = (p - self.centre[:, None, None]) / self.scale[:, None, None, None]
        return torch.einsum("tji,thwj->thwi", self.turn, away)


def _motion(generator: torch.Generator, time: Tensor, moves: bool) -> _Place:
    """Constant velocities; of the ground slower ones around the middle."""
    draw = torch.rand(7, generator=generator)
    heading, turn, growth = 2 * math.pi * draw[0], 2 * draw[1] - 1, 2 * draw[2] - 1
    if moves:
        middle, radius = 0.25 + 0.5 * draw[3:5], 0.13 + 0.1 * draw[5]
        speed, angle, swell = 0.2 + 0.35 * draw[6], 1.0 * turn, 0.25 * growth
    else:
        middle, radius = torch.tensor([0.5, 0.5]), torch.tensor(1.0)
        speed, angle, swell = 0.1 + 0.25 * draw[6], 0.15 * turn, 0.1 * growth
    velocity = speed * torch.stack([heading.cos(), heading.sin()])
    scale = radius * (swell * time).exp()
    return _Place(middle + time[:, None] * velocity, angle * time, scale)


def _surface(
    generator: torch.Generator, local: Tensor, light_cells: tuple[int, ...], colour_cells: int
) -> Tensor:
    """Lab colours [T, 3, H, W] at places [T, H, W, 2] of a layer, whose textures are drawn."""
    noise = [_noise(generator, cells) for cells in (light_cells, (colour_cells,), (colour_cells,))]
    texture = torch.stack(noise)[None].expand(len(local), -1, -1, -1)
    found = F.grid_sample(
        texture, local / EXTENT, padding_mode="reflection", align_corners=False
    )  # [T, 3, H, W]
    middle = 52 + 14 * torch.rand((), generator=generator)
    light = middle + 10 * found[:, 0].tanh()
    hues = 2 * math.pi * torch.rand(4, generator=generator)
    which = (found[:, 1] > 0).long() + 2 * (found[:, 2] > 0).long()
    hue = hues[which]
    return torch.stack([light, CHROMA * hue.cos(), CHROMA * hue.sin()], 1)


def _noise(generator: torch.Generator, cells: tuple[int, ...]) -> Tensor:
    """[TEXELS, TEXELS], a sum of smooth noises with so many cells a side."""
    total = torch.zeros(TEXELS, TEXELS)
    for count in cells:
        coarse = torch.randn(1, 1, count, count, generator=generator)
        total += F.interpolate(coarse, (TEXELS, TEXELS), mode="bicubic")[0, 0]
    return total.div(len(cells) ** 0.5)


class _Outline:
    """A shape around the origin: radius 1 + a cos(k phi), stretched along one axis."""

    def __init__(self, generator: torch.Generator) -> None:
        draw = torch.rand(2, generator=generator)
        self.corners = int(torch.randint(2, 6, (), generator=generator))
        self.depth = float(0.1 + 0.25 * draw[0])
        self.stretch = torch.stack([0.75 + 0.25 * draw[1], torch.tensor(1.0)])

    def holds(self, local: Tensor) -> Tensor:
        """Whether each place [..., 2] is inside."""
        x, y = (local / self.stretch).unbind(-1)
        reach = 1 + self.depth * (self.corners * torch.atan2(y, x)).cos()
        inside: Tensor = x.hypot(y) < reach
        return inside

    def points(self, generator: torch.Generator) -> Tensor:
        """The centre and places half way out, [POINTS, 2], all inside."""
        angle = 2 * math.pi * torch.rand((), generator=generator)
        angles = angle + torch.arange(POINTS - 1) * math.pi * 2 / (POINTS - 1)
        out = 0.5 * torch.stack([angles.cos(), angles.sin()], 1) * self.stretch
        return torch.cat([torch.zeros(1, 2), out])


def _visible(points: Tensor, masks: Tensor) -> Tensor:
    """Whether each point [T, K, 2] is in the frame and its object in front there: [T, K]."""
    size = masks.shape[1]
    column, row = (points * size).floor().long().unbind(2)
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    frame = torch.arange(len(masks))[:, None]
    front = masks[frame, row.clamp(0, size - 1), column.clamp(0, size - 1)]
    owner = torch.arange(OBJECTS).repeat_interleave(POINTS) + 1
    return inside & (front == owner)
