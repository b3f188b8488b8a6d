"""Small convolutional encoders for 8x8 and for 28 to 32 px images."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sslops.training.models.layers import Standardise, conv_bn_relu, init_kaiming, run_stages

__all__ = ["CNN"]


class CNN(nn.Module):
    """3x3 convolutions with BN and ReLU, then average pooling to pool x pool cells.

    Args:
        channels: of the images.
        widths: output channels of each convolution.
        strides: of each convolution.
        pool: cells a side that are kept; features are widths[-1] * pool**2 wide.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], strides: Sequence[int], pool: int = 1
    ) -> None:
        super().__init__()
        self.pool = pool
        self.dim = widths[-1] * pool * pool
        self.standardise = Standardise(channels)
        self.layers = nn.Sequential()
        for width, stride in zip(widths, strides, strict=True):
            self.layers.append(conv_bn_relu(channels, width, stride=stride))
            channels = width
        init_kaiming(self)

    def stage_modules(self) -> list[nn.Module]:
        """The convolutions with their BN and ReLU, one a stage."""
        return list(self.layers)

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """[B, C, H, W] in [0, 1] -> the output of every stage, [B, c, h, w]."""
        return run_stages(self.standardise(x), self.stage_modules())

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1] -> [B, dim]."""
        x = self.layers(self.standardise(x))
        return F.adaptive_avg_pool2d(x, self.pool).flatten(1)
