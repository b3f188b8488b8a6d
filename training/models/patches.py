"""CPC's encoder of images: overlapping patches, each encoded by itself, in a grid."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslops.training.models.layers import Standardise, init_kaiming

__all__ = ["PatchEncoder"]


class PatchEncoder(nn.Module):
    """A small convolutional network on each patch; the features of an image are their mean.

    Norms are over the channels of one place (layer norm): batch norm would tell a patch about
    the others of its image, which is what should be predicted.

    Args:
        channels: of the images.
        patch: side of a patch in pixels.
        width: channels of the first convolution; 4 width of the last, the size of z.
        stride: from a patch to the next; half a patch if None.

    Attributes:
        dim: size of z and of `forward`'s result.

    Source:
        van den Oord et al. 2018, arXiv:1807.03748, section 3.2 (7 x 7 patches that overlap by
        half); without batch norm after Henaff et al. 2019, arXiv:1905.09272.
    """

    def __init__(
        self, channels: int, *, patch: int = 8, width: int = 32, stride: int | None = None
    ) -> None:
        super().__init__()
        self.patch, self.stride = patch, stride or patch // 2
        self.dim = 4 * width
        self.standardise = Standardise(channels)
        self.layers = nn.Sequential()
        dim_in = channels
        for factor, step in ((1, 1), (2, 2), (4, 2)):
            conv = nn.Conv2d(dim_in, factor * width, 3, step, 1)
            norm = _PlaceNorm(factor * width)
            self.layers.append(nn.Sequential(conv, norm, nn.ReLU(inplace=True)))
            dim_in = factor * width
        init_kaiming(self)
        for layer in self.layers.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(cast(Tensor, layer.bias))

    def cells(self, side: int) -> int:
        """Patches along a side of so many pixels."""
        return (side - self.patch) // self.stride + 1 if side >= self.patch else 0

    def cut(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Patches [B, rows, columns, C, patch, patch] of images.

        Args:
            x: [B, C, H, W].
            kept: [B, rows, columns] int64, the one channel that a patch has in place of all, -1
                where it keeps them; all of them if None.
        """
        if min(x.shape[2:]) < self.patch:
            raise ValueError(
                f"PatchEncoder: image sides must be at least the patch, {self.patch} pixels, got"
                f" {x.shape[2]} x {x.shape[3]}"
            )
        patches = x.unfold(2, self.patch, self.stride).unfold(3, self.patch, self.stride)
        patches = patches.permute(0, 2, 3, 1, 4, 5)
        if kept is None:
            return patches
        channel = kept[..., None, None, None]
        index = channel.clamp_min(0).expand(-1, -1, -1, 1, self.patch, self.patch)
        return torch.where(channel < 0, patches, patches.gather(3, index))

    def grid(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Latents of all patches: [B, C, H, W] in [0, 1] -> [B, rows, columns, dim].

        Args:
            x: images.
            kept: see `cut`.
        """
        patches = self.cut(x, kept)
        B, rows, columns = patches.shape[:3]
        z = self.layers(self.standardise(patches.flatten(0, 2)))
        return F.adaptive_avg_pool2d(z, 1).view(B, rows, columns, self.dim)

    def stage_modules(self) -> list[nn.Module]:
        """One stage: the network that encodes a patch."""
        return [self.layers]

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """The latents: [B, C, H, W] in [0, 1] -> one map [B, dim, rows, columns]."""
        return [self.grid(x).permute(0, 3, 1, 2)]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, dim]."""
        return self.grid(x).mean((1, 2))


class _PlaceNorm(nn.Module):
    """Layer norm over the channels of each place, [B, C, H, W] -> same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
