"""Gaussian blur and noise, each with one parameter an image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["add_noise", "gaussian_blur"]

TRUNCATE = 3.0  # sigmas on each side


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Convolve `x` [N, C, H, W] with Gaussians of `sigma` [N] pixels, edges reflected.

    Separable; the kernel is cut at three of the largest sigma, or where reflection ends.
    """
    N, C, H, W = x.shape
    radius = min(math.ceil(TRUNCATE * float(sigma.max())), H - 1, W - 1)
    if radius < 1:
        return x
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.softmax(-0.5 * (offsets / sigma.to(x.device)[:, None]) ** 2, 1)  # [N, taps]
    kernel = kernel.repeat_interleave(C, 0)[:, None, None, :]  # [N * C, 1, 1, taps]
    x = F.pad(x.reshape(1, N * C, H, W), [radius] * 4, "reflect")
    x = F.conv2d(x, kernel, groups=N * C)
    return F.conv2d(x, kernel.transpose(2, 3), groups=N * C).view(N, C, H, W)


def add_noise(x: Tensor, noise: Tensor) -> Tensor:
    """Add `noise`, of the shape of `x`, and clip to [0, 1]."""
    return (x + noise).clamp_(0, 1)
