"""Changes of colour, each with one parameter an image; all keep values in [0, 1].

Definitions are torchvision's (brightness multiplies; contrast blends with the mean of the grey
image, saturation with the grey image itself; hue turns the hue of HSV).
"""

import torch
from torch import Tensor

__all__ = ["COLOUR_OPS", "adjust_brightness", "adjust_contrast", "adjust_hue",
           "adjust_saturation", "solarise", "to_grey"]  # fmt: skip

LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601


def luma(x: Tensor) -> Tensor:
    """Grey image [N, 1, H, W] of `x` [N, C, H, W]; grey images come back as they are."""
    if x.shape[1] == 1:
        return x
    grey = x[:, :1] * LUMA[0]
    return grey.add_(x[:, 1:2], alpha=LUMA[1]).add_(x[:, 2:], alpha=LUMA[2])


def _per_image(parameter: Tensor) -> Tensor:
    return parameter[:, None, None, None]


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply `x` by `factor` [N] >= 0."""
    return x.mul(_per_image(factor)).clamp_(max=1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale distances from the mean of the grey image by `factor` [N] >= 0."""
    mean = luma(x).mean((2, 3), keepdim=True)  # [N, 1, 1, 1]
    factor = _per_image(factor)
    return x.mul(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Scale distances from the grey image by `factor` [N] >= 0, for `x` [N, 3, H, W]."""
    return torch.lerp(luma(x), x, _per_image(factor)).clamp_(0, 1)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    r"""Turn the hue of HSV by `shift` [N], in shares of the circle, for `x` [N, 3, H, W].

    $$ c = V - C \cdot \mathrm{clamp}(2 - |k_c - 2|, 0, 1), \quad k_c = (n_c + h) \bmod 6,
       \quad n = (5, 3, 1) $$

    with V the largest channel, C its distance to the smallest and h the hue in sixths of the
    circle. Written without branches: comparisons become signs, which vectorise.
    """
    red, green, blue = x[:, :1], x[:, 1:2], x[:, 2:]
    V = torch.maximum(red, green).maximum(blue)  # faster than amax over a short dimension
    C = V - torch.minimum(red, green).minimum(blue)
    not_red, not_green = (V - red).sign_(), (V - green).sign_()
    # distance from the hue of the largest channel: 0, 2, 4 sixths for red, green, blue
    at_blue = (red - green).mul_(not_green).mul_(not_red)
    at_green = (blue - red).mul_(1 - not_green).mul_(not_red)
    at_red = (green - blue).mul_(1 - not_red)
    h = at_blue.add_(at_green).add_(at_red).div_(C.clamp(min=1e-12))
    h.addcmul_(not_red, not_green.add_(1), value=2)
    # k / 6 with 2 turns added, so that frac sees no negative number
    turns = (h / 6).add_(_per_image(shift) + 2)
    phase = torch.tensor([5 / 6, 3 / 6, 1 / 6], device=x.device)[None, :, None, None]
    k = (turns + phase).frac_()
    distance = k.sub_(1 / 3).abs_().clamp_(1 / 6, 1 / 3)  # |k - 2| between 1 and 2, in sixths
    return distance.mul_(6 * C).add_(V - 2 * C).clamp_(0, 1)


def to_grey(x: Tensor) -> Tensor:
    """The grey image in every channel."""
    return luma(x).expand_as(x)


def solarise(x: Tensor) -> Tensor:
    """Invert the pixels at or above one half."""
    return torch.minimum(x, 1 - x)


COLOUR_OPS = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}
