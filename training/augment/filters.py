"""Gaussian blur and noise, each with one parameter an image."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["add_noise", "gaussian_blur"]


def gaussian_blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Convolve `x` [N, C, H, W] with Gaussians of `sigma` [N] > 0 pixels, edges reflected.

    Separable, with 2 * radius + 1 taps for all images, so that an image's result does not depend
    on the others in its batch; a radius that reaches past the reflection is shortened.
    """
    N, C, H, W = x.shape
    radius = min(radius, H - 1, W - 1)
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, 1)  # [N, taps]
    kernel = kernel.repeat_interleave(C, 0)[:, None, None, :]  # [N * C, 1, 1, taps]
    x = F.pad(x.reshape(1, N * C, H, W), [radius] * 4, "reflect")
    x = F.conv2d(x, kernel, groups=N * C)
    return F.conv2d(x, kernel.transpose(2, 3), groups=N * C).view(N, C, H, W)


def add_noise(x: Tensor, noise: Tensor) -> Tensor:
    """Add `noise`, of the shape of `x`, and clip to [0, 1]."""
    return (x + noise).clamp_(0, 1)
