"""Views of a batch: parameters are drawn per image, pixels are moved once."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops.training.augment.recipe import ViewRecipe

__all__ = ["make_views"]


def make_views(
    images: Tensor, recipe: ViewRecipe, num_views: int, generator: torch.Generator
) -> Tensor:
    """[B, C, H, W] uint8 or float in [0, 1] -> [V, B, C, H, W] float32 in [0, 1]."""
    x = images.float() / 255 if images.dtype is torch.uint8 else images.float()
    return torch.stack([_view(x, recipe, generator) for _ in range(num_views)])


def _view(x: Tensor, recipe: ViewRecipe, generator: torch.Generator) -> Tensor:
    B, C, H, W = x.shape

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(B, generator=generator) * (high - low) + low).to(x.device)

    ratio = torch.exp(uniform(*map(math.log, recipe.crop_ratio)))
    area = uniform(*recipe.crop_scale)
    w, h = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    cx, cy = uniform(-1, 1) * (1 - w), uniform(-1, 1) * (1 - h)
    w = torch.where(uniform(0, 1) < recipe.flip, -w, w)
    theta = torch.zeros(B, 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 0, 2], theta[:, 1, 1], theta[:, 1, 2] = w, cx, h, cy
    size = [B, C, recipe.size or H, recipe.size or W]
    grid = F.affine_grid(theta, size, align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    on = (uniform(0, 1) < recipe.jitter).float()
    b = uniform(-1, 1) * recipe.brightness * on + 1
    c = uniform(-1, 1) * recipe.contrast * on + 1
    x = (x * b[:, None, None, None]).clamp(0, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, x, c[:, None, None, None]).clamp(0, 1)
