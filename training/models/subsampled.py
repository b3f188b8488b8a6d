"""Strided 1x1 convolutions of few channels, computed where PyTorch's CPU kernel is right.

Its weight gradient of a 1x1 convolution with a stride, 2 to 7 input channels and channels-last
memory (what torch.compile chooses as well) writes outside of its buffers on processors with AVX2
and no more: oneDNN's jit_1x1:avx2, seen in PyTorch 2.13.0 and 2.14.1. Without a stride all is well.
"""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SubsampledConv2d", "is_unsafe", "subsample_first", "subsampled"]

SAFE_CHANNELS = 8  # from here on the kernel stays within its buffers


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
        and 1 < layer.in_channels < SAFE_CHANNELS
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
