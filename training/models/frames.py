"""The encoder of single frames of a video: a feature every 4 pixels, from grey alone."""

import torch.nn.functional as F
from torch import Tensor, nn

from sslops.training.augment.lab import lightness
from sslops.training.models.layers import conv_bn_relu, init_kaiming, run_stages

__all__ = ["FrameCNN"]

STRIDE = 4
DIM = 64  # of a feature


class FrameCNN(nn.Module):
    """Five 3x3 convolutions, two of stride 2, and a linear 1x1; each feature sees 31 x 31 pixels.

    Features are signed, as no ReLU follows the last layer: they are to be compared.

    Args:
        channels: of the images: 3, of which the lightness is looked at, or 1.
        width: channels of the first convolution, half of those that follow.

    Raises:
        ValueError: channels not 1 or 3.
    """

    stride = STRIDE

    def __init__(self, channels: int, *, width: int = 32) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"build_encoder: frame-cnn takes 1 or 3 channels, got {channels}")
        self.dim = DIM
        self.layers = nn.Sequential(
            conv_bn_relu(1, width, stride=2),
            conv_bn_relu(width, 2 * width, stride=2),
            conv_bn_relu(2 * width, 2 * width),
            conv_bn_relu(2 * width, 2 * width),
            nn.Sequential(conv_bn_relu(2 * width, 2 * width), nn.Conv2d(2 * width, DIM, 1)),
        )
        init_kaiming(self)

    def stage_modules(self) -> list[nn.Module]:
        """The convolutions, the last with the linear layer."""
        return list(self.layers)

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """[B, C, H, W] in [0, 1] -> the output of every block, the last [B, dim, H / 4, W / 4]."""
        x = lightness(x) / 50 - 1 if x.shape[1] == 3 else 2 * x - 1
        return run_stages(x, self.stage_modules())

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in [0, 1] -> [B, dim], the mean over all places."""
        return F.adaptive_avg_pool2d(self.feature_maps(x)[-1], 1).flatten(1)
