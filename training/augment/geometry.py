"""Where a view's pixels come from: crop, mirror, affine and elastic maps in one resampling."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops.training.augment.draw import Draw
from sslops.training.augment.recipe import ViewRecipe

__all__ = ["draw_crop", "draw_displacement", "draw_theta", "warp"]

CROP_TRIES = 10


def draw_crop(draw: Draw, recipe: ViewRecipe, H: int, W: int) -> Tensor:
    """Boxes [N, 4] (left, top, width, height) in pixels, not rounded.

    A box is the first of ten draws of (area, ratio) that lies inside the image; if none does, the
    largest centred box with a permitted ratio.
    """
    low, high = recipe.crop_ratio
    area = draw.uniform(*recipe.crop_scale, CROP_TRIES) * (H * W)  # [N, CROP_TRIES]
    ratio = draw.uniform(math.log(low), math.log(high), CROP_TRIES).exp()
    w, h = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (w <= W) & (h <= H)
    first = fits.int().argmax(1, keepdim=True)
    w, h, fits = (t.gather(1, first)[:, 0] for t in (w, h, fits))  # [N]
    w = torch.where(fits, w, min(W, H * high))
    h = torch.where(fits, h, min(H, W / low))
    left, top = draw.uniform(0, 1) * (W - w), draw.uniform(0, 1) * (H - h)
    left = torch.where(fits, left, (W - w) / 2)
    top = torch.where(fits, top, (H - h) / 2)
    return torch.stack([left, top, w, h], 1)


def draw_theta(draw: Draw, recipe: ViewRecipe, H: int, W: int) -> Tensor:
    """Maps [N, 2, 3] from the view's coordinates to the image's, both in [-1, 1].

    From right to left: mirror, scale to the crop's box, rotation, shear and zoom about the box's
    middle, shift to where that middle lies.
    """
    N = draw.N
    if recipe.crop_scale == (1.0, 1.0):
        box = torch.tensor([0.0, 0.0, W, H]).expand(N, 4)
    else:
        box = draw_crop(draw, recipe, H, W)
    left, top, w, h = box.unbind(1)
    half_w, half_h = torch.where(draw.coin(recipe.flip), -w, w) / 2, h / 2
    x, y = left + w / 2, top + h / 2  # the box's middle

    a = b = torch.zeros(N)
    if recipe.rotate:
        a = draw.uniform(-recipe.rotate, recipe.rotate) * (math.pi / 180)
    if recipe.shear:
        b = draw.uniform(-recipe.shear, recipe.shear) * (math.pi / 180)
    if recipe.translate:
        x = x + draw.uniform(-recipe.translate, recipe.translate) * W
        y = y + draw.uniform(-recipe.translate, recipe.translate) * H
    zoom = 1 / draw.uniform(*recipe.zoom) if recipe.zoom != (1.0, 1.0) else torch.ones(N)

    cos, sin, tan = a.cos() * zoom, a.sin() * zoom, b.tan()
    # rotation @ [[1, tan], [0, 1]] @ diag(half_w, half_h), then from pixels to [-1, 1]
    linear_x = [cos * half_w, (cos * tan - sin) * half_h, x - W / 2]
    linear_y = [sin * half_w, (sin * tan + cos) * half_h, y - H / 2]
    return torch.stack([torch.stack(linear_x, 1) * (2 / W), torch.stack(linear_y, 1) * (2 / H)], 1)


def draw_displacement(draw: Draw, recipe: ViewRecipe) -> Tensor:
    """Displacements [N, 2, g, g] of the control points, in the coordinates [-1, 1]."""
    return draw.normal(2, recipe.elastic_grid, recipe.elastic_grid) * (2 * recipe.elastic)


def warp(
    x: Tensor, theta: Tensor, displacement: Tensor | None, H: int, W: int, padding: str
) -> Tensor:
    """Resample `x` [N, C, h, w] to [N, C, H, W] with one bilinear look-up a pixel.

    Nothing is averaged over more than four pixels: for crops that shrink by much more than two,
    resize the images beforehand. Unlike torchvision's RandomResizedCrop the box keeps its
    fractions of a pixel, and a sample at its rim blends with the image's pixels outside it.
    """
    grid = torch.empty(len(x), H, W, 2, device=x.device)
    u = (2 * torch.arange(W, device=x.device) + 1) / W - 1  # pixel middles
    v = (2 * torch.arange(H, device=x.device) + 1) / H - 1
    along_u = theta[:, :, 0, None] * u + theta[:, :, 2, None]  # [N, 2, W]
    along_v = theta[:, :, 1, None] * v  # [N, 2, H]
    for axis in range(2):
        torch.add(along_u[:, axis, None, :], along_v[:, axis, :, None], out=grid[..., axis])
    if displacement is not None:
        smooth = F.interpolate(displacement, (H, W), mode="bicubic", align_corners=True)
        grid += smooth.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, "bilinear", padding, align_corners=False)
