"""Quarter turns of square images: exact ones, and ones that leave traces of how they were made."""

import math

import torch
from torch import Tensor

from sslops.training.augment.geometry import warp

__all__ = ["TURNS", "interpolated_turns", "quarter_turns"]

TURNS = 4


def quarter_turns(x: Tensor) -> Tensor:
    """Turn by 0, 90, 180 and 270 degrees counter-clockwise, by transposes and flips alone.

    Every pixel keeps its value, so that nothing but the content tells how an image was turned.

    Args:
        x: [B, C, S, S].

    Returns:
        [B, 4, C, S, S].
    """
    across = x.transpose(2, 3)
    return torch.stack([x, across.flip(2), x.flip(2, 3), across.flip(3)], 1)


def interpolated_turns(x: Tensor, error: float) -> Tensor:
    """The same by bilinear look-up, each quarter turn `error` degrees too wide.

    What lies outside the image is black: corners darken and edges blur, the more the further an
    image is turned, which tells the turn without a look at the content.

    Args:
        x: [B, C, S, S] float.
        error: degrees; at 0 the turns are exact but for rounding.

    Returns:
        [B, 4, C, S, S].
    """
    side = x.shape[2]
    turned = []
    for k in range(TURNS):
        angle = k * math.radians(90 + error)
        cos, sin = math.cos(angle), math.sin(angle)
        theta = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]], device=x.device)
        turned.append(warp(x, theta.expand(len(x), 2, 3), None, side, side, "zeros"))
    return torch.stack(turned, 1)
