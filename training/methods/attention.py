"""Where an encoder looks: the power of its activations, laid over the image.

Gidaris et al. 2018, arXiv:1803.07728, section 2.1 and figure 3: the activations of a stage are
raised to a power and summed over its channels; later stages take higher powers.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["attention_map", "attention_pictures", "heat"]

POWERS = (1, 2, 4)  # of stage 1, 2, and 3 and later
CLEAR = 0.35  # share of the grey image in a picture
SIDE = 56  # least side in pixels of a picture: that of a cell of the report


def attention_map(activations: Tensor, power: float) -> Tensor:
    """Sum over channels of the activations' powers, [B, c, h, w] -> [B, h, w] in [0, 1].

    An image's largest value is 1; without any activation all are 0.
    """
    total = activations.float().abs().pow(power).sum(1)
    return total / total.amax((1, 2), keepdim=True).clamp_min(torch.finfo(total.dtype).tiny)


def heat(values: Tensor) -> Tensor:
    """Values in [0, 1], [...] -> colours [..., 3] from black over red and yellow to white."""
    return (3 * values[..., None] - torch.arange(3, device=values.device)).clamp(0, 1)


@torch.no_grad()
def attention_pictures(encoder: nn.Module, images: Tensor) -> Tensor:
    """The images, and below them the attention of each stage: [1 + stages, B, 3, S, S].

    Args:
        encoder: with `feature_maps`, in eval mode.
        images: [B, C, H, W] uint8.
    """
    x = images.float().div(255)
    maps = cast(list[Tensor], cast(Any, encoder).feature_maps(x))
    scale = -(-SIDE // min(x.shape[2:]))  # rounded up
    shown = F.interpolate(x, scale_factor=scale, mode="nearest").expand(-1, 3, -1, -1)
    grey = shown.mean(1, keepdim=True)
    rows = [shown]
    for stage, activations in enumerate(maps):
        attention = attention_map(activations, POWERS[min(stage, len(POWERS) - 1)])
        size = shown.shape[2:]
        smooth = F.interpolate(attention[:, None], size, mode="bilinear", align_corners=False)
        colours = heat(smooth[:, 0]).permute(0, 3, 1, 2)  # [B, 3, H, W]
        rows.append(CLEAR * grey + (1 - CLEAR) * colours)
    return torch.stack(rows)
