"""A small convolutional network that tells pictures from predictions."""

import math

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["Discriminator", "adversarial_losses"]


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


def adversarial_losses(
    discriminator: nn.Module, made: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """The generator's loss, -log D(made), which does not saturate; and the discriminator's.

    The first has no path to the discriminator's weights, the second none to what made `made`, so
    that both may be part of one backward pass.

    Args:
        discriminator: pictures -> logits [B].
        made: [B, C, H, W] with the generator's graph.
        real: [B, C, H, W].

    Source:
        Goodfellow et al. 2014, arXiv:1406.2661, section 3.
    """
    fixed = {name: each.detach() for name, each in discriminator.named_parameters()}
    generators = F.softplus(-functional_call(discriminator, fixed, (made,)).float()).mean()
    on_real = F.softplus(-discriminator(real).float()).mean()
    on_made = F.softplus(discriminator(made.detach()).float()).mean()
    return generators, on_real + on_made
