"""Holes in images, and the plain ways to fill them."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslops.training.augment.draw import Draw

__all__ = ["centre_hole", "nearest_fill", "random_regions", "rim"]


def centre_hole(B: int, H: int, W: int) -> Tensor:
    """The middle half of each side, a quarter of the image: [B, 1, H, W] bool, True inside.

    Raises:
        ValueError: a side below 4 pixels has no middle half with something on both sides.
    """
    if min(H, W) < 4:
        raise ValueError(f"centre_hole: sides must be at least 4 pixels, got {H} x {W}")
    hole = torch.zeros(B, 1, H, W, dtype=torch.bool)
    hole[:, :, H // 4 : H // 4 + H // 2, W // 4 : W // 4 + W // 2] = True
    return hole


def random_regions(draw: Draw, H: int, W: int, *, area: float, cells: int) -> Tensor:
    """Blobs of any form, drawn anew for each image: [B, 1, H, W] bool, True inside.

    A coarse grid of random numbers is enlarged smoothly, and the pixels with the lowest values
    are the hole: always the same number of them, wherever they lie.

    Args:
        draw: of B images.
        H: height in pixels.
        W: width in pixels.
        area: share of the image that the hole takes, in (0, 1).
        cells: numbers a side of the coarse grid, at least 2; more make smaller blobs.

    Raises:
        ValueError: no pixel would be inside, or none outside.

    Source:
        Pathak et al. 2016, arXiv:1604.07379, section 3.3 (random region, a quarter of the image).
    """
    pixels = round(area * H * W)
    if not 0 < pixels < H * W:
        raise ValueError(
            f"random_regions: a hole must leave pixels on both sides, got {pixels} of the"
            f" {H} x {W} pixels inside"
        )
    if cells < 2:
        raise ValueError(f"random_regions: cells must be at least 2, got {cells}")
    coarse = draw.uniform(0, 1, 1, cells, cells)
    smooth = F.interpolate(coarse, (H, W), mode="bicubic", align_corners=True).flatten(1)
    lowest = smooth.argsort(dim=1, stable=True)[:, :pixels]
    return torch.zeros_like(smooth, dtype=torch.bool).scatter_(1, lowest, True).view(-1, 1, H, W)


def rim(hole: Tensor, width: int) -> Tensor:
    """The pixels outside a hole [B, 1, H, W] that are at most `width` from it, also diagonally."""
    wide = F.max_pool2d(hole.float(), 2 * width + 1, 1, width) > 0
    return wide & ~hole


def nearest_fill(x: Tensor, hole: Tensor) -> Tensor:
    """Give each pixel of the hole the nearest pixel outside it.

    Args:
        x: [B, C, H, W].
        hole: [B, 1, H, W] bool; leaves at least one pixel of each image outside.

    Returns:
        [B, C, H, W]; the pixels of `x` inside the hole are not looked at.
    """
    from scipy.ndimage import distance_transform_edt  # a second to import

    H, W = x.shape[2:]
    flat = []
    for each in hole[:, 0].cpu().numpy():
        row, column = distance_transform_edt(each, return_distances=False, return_indices=True)
        flat.append(torch.from_numpy((row * np.int64(W) + column).reshape(H * W)))
    index = torch.stack(flat).to(x.device)[:, None].expand(-1, x.shape[1], -1)  # [B, C, H W]
    return x.flatten(2).gather(2, index).view_as(x)
