"""Colours as classes: bins of ab that sRGB has, soft encoding, weights, and the way back.

Source:
    Zhang et al. 2016, arXiv:1603.08511, sections 2.1 to 2.3.
"""

import math
from functools import cache

import torch
from torch import Tensor

from sslops.training.augment.lab import rgb_to_lab

__all__ = ["ab_bins", "annealed_mean", "lightness_bins", "rebalancing", "soft_encode"]

GRID, REACH = 10, 110  # from a bin's centre to the next; of the outermost
DIRECTIONS = 720  # of the tangents that stand for the convex hull
PIXELS = 1 << 14  # encoded at once: the distances to all bins stay below some 20 MB


def ab_bins() -> Tensor:
    """Centres of the bins of ab in sRGB's gamut, [313, 2] float32, in the published order.

    The rule: points of the grid -110, -100, ..., 110 that are no further than 10, in a and in b,
    from the convex hull of the colours of sRGB. It gives the 313 points that Zhang et al. publish
    (pts_in_hull); cells that hold a colour themselves would be 261.
    """
    return _ab_bins().clone()


@cache
def _ab_bins() -> Tensor:
    # The hull of the gamut is that of the twelve edges of the RGB cube.
    along = torch.linspace(0, 1, 257, dtype=torch.float64)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    edges = torch.cartesian_prod(along, ends, ends)
    colours = torch.cat([edges.roll(i, 1) for i in range(3)]).T
    ab = rgb_to_lab(colours[:, None])[1:, 0]  # [2, n]
    grid = torch.arange(-REACH, REACH + 1, GRID, dtype=torch.float64)
    centres = torch.cartesian_prod(grid, grid)
    angle = torch.arange(DIRECTIONS, dtype=torch.float64) * (2 * math.pi / DIRECTIONS)
    normals = torch.stack([angle.cos(), angle.sin()])  # [2, DIRECTIONS]
    beyond = centres @ normals - (normals.T @ ab).amax(1)  # of the tangent with that normal
    near = (beyond <= GRID * normals.abs().sum(0)).all(1)
    return centres[near].float()


def lightness_bins(bins: int) -> Tensor:
    """Centres of `bins` equal bins of L in [0, 100], [bins, 1] float32."""
    return (torch.arange(bins) + 0.5)[:, None] * (100 / bins)


def soft_encode(
    values: Tensor, bins: Tensor, neighbours: int = 5, sigma: float = 5.0
) -> tuple[Tensor, Tensor]:
    r"""The nearest bins of every pixel and their shares.

    $$ z_q \propto \exp(-|v - c_q|^2 / 2 \sigma^2) \quad \text{for the nearest bins } q $$

    Args:
        values: [B, d, H, W].
        bins: centres, [Q, d].
        neighbours: how many bins share a pixel; 1 is one-hot.
        sigma: of the Gaussian, in the units of `values`.

    Returns:
        index: [B, H, W, neighbours] int64, the nearest first.
        weight: the same shape, its last dimension adding up to 1.
    """
    flat = values.movedim(1, 3)  # [B, H, W, d]
    indices, weights = [], []
    for part in torch.split(flat.reshape(-1, bins.shape[1]), PIXELS):
        distance = (part[:, :1] - bins[:, 0]).square()  # [n, Q]
        for axis in range(1, bins.shape[1]):
            distance += (part[:, axis, None] - bins[:, axis]).square()
        nearest, index = distance.topk(neighbours, largest=False)
        indices.append(index)
        weights.append((nearest / (-2 * sigma**2)).softmax(1))
    shape = (*flat.shape[:3], neighbours)
    return torch.cat(indices).view(shape), torch.cat(weights).view(shape)


def rebalancing(prior: Tensor, uniform: float = 0.5) -> Tensor:
    r"""Weights of the bins that let rare colours count, with mean 1 over the prior.

    $$ w_q \propto ((1 - \lambda) p_q + \lambda / Q)^{-1}, \quad \textstyle\sum_q p_q w_q = 1 $$

    Args:
        prior: p, [Q], adding up to 1.
        uniform: lambda in [0, 1], the uniform distribution's share; 1 weighs all bins alike.
    """
    weights = 1 / ((1 - uniform) * prior + uniform / len(prior))
    return weights / (prior * weights).sum()


def annealed_mean(logits: Tensor, bins: Tensor, temperature: float = 0.38) -> Tensor:
    """Mean colour of the distribution sharpened by a temperature.

    Args:
        logits: [B, Q, H, W].
        bins: centres, [Q, d].
        temperature: 1 is the mean, which is dull; towards 0 the mode, which is blotchy.

    Returns:
        [B, d, H, W].

    Raises:
        ValueError: `temperature` is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"annealed_mean: temperature must be positive, got {temperature}")
    shares = (logits.float() / temperature).softmax(1)
    return torch.einsum("bqhw,qd->bdhw", shares, bins)
