"""A small convolutional network that tells pictures from predictions."""

import math

from torch import Tensor, nn

__all__ = ["Discriminator"]


class Discriminator(nn.Module):
    """Convolutions of stride 2 with leaky ReLU down to about 4 x 4 positions; their mean logit.

    Without batch norm: the statistics of a batch of pictures would differ from those of a batch of
    predictions, and give them away.

    Args:
        channels: of the pictures.
        side: in pixels, at least 4.
        width: channels of the first convolution; each further one has twice as many.

    Source:
        after Radford et al. 2016, arXiv:1511.06434, section 3.
    """

    def __init__(self, channels: int, side: int, width: int = 32) -> None:
        super().__init__()
        if side < 4:
            raise ValueError(f"Discriminator: side must be at least 4 pixels, got {side}")
        self.layers = nn.Sequential()
        for _ in range(max(1, int(math.log2(side / 4)))):
            self.layers.append(nn.Conv2d(channels, width, 4, 2, 1))
            self.layers.append(nn.LeakyReLU(0.2))
            channels, width = width, 2 * width
        self.layers.append(nn.Conv2d(channels, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] in [-1, 1] -> logits [B], positive for a picture."""
        logits: Tensor = self.layers(x).mean((1, 2, 3))
        return logits
