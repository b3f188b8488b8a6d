"""From a feature map back to pixels."""

from torch import Tensor, nn

from sslops.training.models.layers import conv_bn_relu, init_kaiming

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """Doublings of the side, each nearest-neighbour and a 3x3 convolution; then a plain 3x3.

    Up-sampling before a convolution leaves no checkerboard, as transposed convolutions do.

    Args:
        channels: of the feature map.
        out: channels of the result.
        doublings: the result's side is 2^doublings of the map's.
        width: channels after the first doubling, halved by each further one, but never below 16;
            half of `channels` if None.

    Raises:
        ValueError: negative doublings.

    Source:
        Odena et al. 2016, "Deconvolution and checkerboard artifacts", doi:10.23915/distill.00003.
    """

    def __init__(
        self, channels: int, out: int, doublings: int, *, width: int | None = None
    ) -> None:
        super().__init__()
        if doublings < 0:
            raise ValueError(f"Decoder: doublings must not be negative, got {doublings}")
        width = channels // 2 if width is None else width
        self.layers = nn.Sequential()
        for _ in range(doublings):
            self.layers.append(nn.Upsample(scale_factor=2.0))
            self.layers.append(conv_bn_relu(channels, max(16, width)))
            channels, width = max(16, width), width // 2
        self.layers.append(nn.Conv2d(channels, out, 3, padding=1))
        init_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, out, h 2^doublings, w 2^doublings]."""
        y: Tensor = self.layers(x)
        return y
