"""Strided 1x1 convolutions of few channels, computed where PyTorch's CPU kernel is right.

Its weight gradient of a 1x1 convolution with a stride and channels-last memory (what torch.compile
chooses as well) writes outside of its buffers where there are fewer input channels than a vector
register has floats: up to 7 with AVX2, up to 15 with AVX-512 (oneDNN's jit_1x1, seen in PyTorch
2.13.0 and 2.14.1, from maps of 6 and of 48 pixels a side on). Without a stride all is well.
"""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SubsampledConv2d", "is_unsafe", "subsample_first", "subsampled"]

SAFE_CHANNELS = 16  # floats of the widest register: from here on nothing was seen to be written


class SubsampledConv2d(nn.Conv2d):
    """A 1x1 convolution with a stride as one without, of every stride-th pixel: the same map."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)]."""
        down, across = self.stride
        return F.conv2d(x[..., ::down, ::across], self.weight, self.bias)


def is_unsafe(layer: nn.Module) -> bool:
    """Whether PyTorch's kernel may write outside of its buffers in the backward pass of `layer`."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.padding == (0, 0)
        and layer.groups == 1
        and layer.in_channels < SAFE_CHANNELS
    )


def subsample_first(network: nn.Module) -> None:
    """Let every unsafe convolution inside `network` take its pixels first; changed in place.

    Parameters, their names and the map stay what they were.
    """
    for layer in network.modules():
        if is_unsafe(layer):
            layer.__class__ = SubsampledConv2d


def subsampled(network: nn.Module) -> list[str]:
    """The names of the layers that `subsample_first` has changed."""
    return [name for name, layer in network.named_modules() if isinstance(layer, SubsampledConv2d)]
