"""Where a view's pixels come from: crop, mirror, affine and elastic maps in one resampling."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops.training.augment.draw import Draw
from sslops.training.augment.recipe import ViewRecipe

__all__ = ["compose_theta", "draw_crop", "draw_displacement", "draw_theta", "warp"]

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


def draw_theta(draw: Draw, recipe: ViewRecipe, H: int, W: int) -> Tensor | None:
    """Maps [N, 2, 3] as `compose_theta` makes them; None if the recipe moves nothing."""
    N = draw.N
    crop = recipe.crop_scale != (1.0, 1.0)
    zoom = recipe.zoom != (1.0, 1.0)
    if not (crop or zoom or recipe.flip or recipe.rotate or recipe.shear or recipe.translate):
        return None
    box = draw_crop(draw, recipe, H, W) if crop else torch.tensor([[0.0, 0.0, W, H]]).expand(N, 4)

    def around_zero(reach: float) -> Tensor:
        return draw.uniform(-reach, reach) if reach else torch.zeros(N)

    return compose_theta(
        box,
        flip=draw.coin(recipe.flip) if recipe.flip else torch.zeros(N, dtype=torch.bool),
        angle=around_zero(math.radians(recipe.rotate)),
        shear=around_zero(math.radians(recipe.shear)),
        shift=torch.stack([around_zero(recipe.translate), around_zero(recipe.translate)], 1),
        zoom=draw.uniform(*recipe.zoom) if zoom else torch.ones(N),
        size=(H, W),
    )


def compose_theta(
    box: Tensor,
    *,
    flip: Tensor,
    angle: Tensor,
    shear: Tensor,
    shift: Tensor,
    zoom: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """Maps [N, 2, 3] from the view's coordinates to the image's, both in [-1, 1].

    A view's point is mirrored, scaled to the box, sheared, rotated and shrunk by the zoom about
    the box's middle, and shifted.

    Args:
        box: [N, 4] left, top, width, height in pixels.
        flip: [N] bool.
        angle: [N] radians.
        shear: [N] radians.
        shift: [N, 2] in shares of the image's width and height.
        zoom: [N], above 1 enlarges the content.
        size: H, W of the image.
    """
    H, W = size
    left, top, w, h = box.unbind(1)
    x = left + w / 2 + shift[:, 0] * W  # where the view's middle lies
    y = top + h / 2 + shift[:, 1] * H
    half_w, half_h = torch.where(flip, -w, w) / 2, h / 2
    cos, sin, tan = angle.cos() / zoom, angle.sin() / zoom, shear.tan()
    # [[cos, -sin], [sin, cos]] @ [[1, tan], [0, 1]] @ diag(half_w, half_h)
    row_x = torch.stack([cos * half_w, (cos * tan - sin) * half_h, x - W / 2], 1)
    row_y = torch.stack([sin * half_w, (sin * tan + cos) * half_h, y - H / 2], 1)
    return torch.stack([row_x * (2 / W), row_y * (2 / H)], 1)


def draw_displacement(draw: Draw, recipe: ViewRecipe) -> Tensor:
    """Displacements [N, 2, g, g] of the control points, in the coordinates [-1, 1]."""
    return draw.normal(2, recipe.elastic_grid, recipe.elastic_grid) * (2 * recipe.elastic)


def warp(
    x: Tensor, theta: Tensor | None, displacement: Tensor | None, H: int, W: int, padding: str
) -> Tensor:
    """Resample `x` [N, C, h, w] to [N, C, H, W] with one bilinear look-up a pixel.

    Nothing is averaged over more than four pixels: for crops that shrink by much more than two,
    resize the images beforehand. Unlike torchvision's RandomResizedCrop the box keeps its
    fractions of a pixel, and a sample at its rim blends with the image's pixels outside it.
    """
    if theta is None:
        theta = torch.eye(2, 3, device=x.device).expand(len(x), 2, 3)
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
