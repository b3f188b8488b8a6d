"""Scores of followed objects: region (J), boundary (F), key points (PCK)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["boundary", "jaccard", "pck"]

TOLERANCE = 0.008  # of the frame's diagonal, between boundaries that count as one


def jaccard(found: Tensor, truth: Tensor) -> Tensor:
    """J, intersection over union of masks [..., H, W] bool: [...] float32; 1 if both are empty."""
    both = (found & truth).sum((-2, -1)).float()
    either = (found | truth).sum((-2, -1)).float()
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def boundary(found: Tensor, truth: Tensor, tolerance: int | None = None) -> Tensor:
    """F, the harmonic mean of precision and recall of the masks' boundaries; 1 if both are empty.

    A pixel of one boundary is right if the other has one within `tolerance` pixels.

    Args:
        found: [N, H, W] bool.
        truth: [N, H, W] bool.
        tolerance: 0.8 % of the diagonal, rounded up, if None.

    Returns:
        [N] float32.

    Source:
        Perazzi et al. 2016, "A benchmark dataset and evaluation methodology for video object
        segmentation" (DAVIS), doi:10.1109/CVPR.2016.85, section 4.
    """
    if tolerance is None:
        tolerance = math.ceil(TOLERANCE * math.hypot(*truth.shape[1:]))
    a, b = _edge(found), _edge(truth)
    hits_a, hits_b = (a & _widen(b, tolerance)).sum((1, 2)), (b & _widen(a, tolerance)).sum((1, 2))
    count_a, count_b = a.sum((1, 2)), b.sum((1, 2))
    precision, recall = hits_a / count_a.clamp(min=1), hits_b / count_b.clamp(min=1)
    score = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    return torch.where((count_a == 0) & (count_b == 0), 1.0, score)


def _edge(masks: Tensor) -> Tensor:
    """Pixels that differ from the one to the right, below or diagonally below: [N, H, W] bool."""
    padded = F.pad(masks[:, None].float(), (0, 1, 0, 1), mode="replicate")[:, 0].bool()
    right, below, both = padded[:, :-1, 1:], padded[:, 1:, :-1], padded[:, 1:, 1:]
    return (masks ^ right) | (masks ^ below) | (masks ^ both)


def _widen(edges: Tensor, radius: int) -> Tensor:
    """Pixels within `radius` of an edge."""
    if radius < 1:
        return edges
    reach = torch.arange(-radius, radius + 1, device=edges.device)
    disk = (reach[:, None] ** 2 + reach**2 <= radius**2).float()
    return F.conv2d(edges[:, None].float(), disk[None, None], padding=radius)[:, 0] > 0.5


def pck(found: Tensor, truth: Tensor, visible: Tensor, within: float) -> Tensor:
    """Share of the visible points that were found within a distance.

    Args:
        found: [..., K, 2] in pixels.
        truth: [..., K, 2].
        visible: [..., K] bool; only these are asked for.
        within: pixels.

    Returns:
        0-d float32; NaN if no point is visible.
    """
    near = (found - truth).square().sum(-1).sqrt() <= within
    return near[visible].float().mean()
