"""PNG files of a run: grids of small images."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["nearest_neighbours", "save_grid"]

CELL = 64  # pixels a side to which small images are enlarged
GAP = 2


def save_grid(path: Path, grid: Tensor) -> None:
    """Write images [rows, columns, C, H, W] in [0, 1] as one PNG on white, small ones enlarged."""
    from PIL import Image

    rows, columns, _, height, width = grid.shape
    scale = max(1, CELL // max(height, width))
    grid = grid.detach().float().cpu().clamp(0, 1).expand(-1, -1, 3, -1, -1)
    grid = grid.repeat_interleave(scale, 3).repeat_interleave(scale, 4)
    grid = F.pad(grid, (0, GAP, 0, GAP), value=1.0)
    pixels = grid.permute(0, 3, 1, 4, 2).reshape(rows * grid.shape[3], columns * grid.shape[4], 3)
    pixels = pixels[:-GAP, :-GAP].mul(255).round().to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.numpy()).save(path, optimize=True)


def nearest_neighbours(features: Tensor, images: Tensor, queries: Tensor, k: int = 7) -> Tensor:
    """Each query beside its `k` nearest images by cosine.

    Args:
        features: [N, D].
        images: [N, C, H, W] uint8.
        queries: [Q] int64, rows of both.
        k: neighbours a query.

    Returns:
        [Q, 1 + k, C, H, W] in [0, 1].
    """
    unit = F.normalize(features, dim=1)
    similarities = unit[queries] @ unit.T  # [Q, N]
    similarities[torch.arange(len(queries)), queries] = float("inf")  # each first for itself
    order = similarities.topk(min(1 + k, len(features)), dim=1).indices
    return images[order].float() / 255
