"""Encoders of RGB images that see some channels of Lab only."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from sslops.training.augment.lab import lightness, rgb_to_lab
from sslops.training.models.declared import checkpoint_blocks

__all__ = ["INPUTS", "ChannelEncoder", "SplitEncoder", "build_colour_encoder"]

INPUTS = ("rgb", "lightness", "ab", "split")
AB_RANGE = 256.0  # a and b lie within half of it around zero


class ChannelEncoder(nn.Module):
    """An encoder behind a change of colours: [B, 3, H, W] RGB in [0, 1] -> [B, dim].

    Args:
        base: takes one channel (lightness) or two (ab), in [0, 1].
        inputs: "lightness" or "ab".
    """

    def __init__(self, base: nn.Module, inputs: str) -> None:
        super().__init__()
        self.base, self.inputs = base, inputs
        self.dim = cast(int, base.dim)

    def channels(self, x: Tensor) -> Tensor:
        """What the base network sees: [B, 1, H, W] or [B, 2, H, W] in [0, 1]."""
        if self.inputs == "lightness":
            return lightness(x) / 100
        return rgb_to_lab(x)[:, 1:] / AB_RANGE + 0.5

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]."""
        return cast(Tensor, self.base(self.channels(x)))

    def checkpoint_blocks(self) -> list[nn.Module]:
        """Those of the base network."""
        return checkpoint_blocks(self.base)

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """Those of the base network."""
        return cast(list[Tensor], cast(Any, self.base).feature_maps(self.channels(x)))

    def stage_modules(self) -> list[nn.Module]:
        """Those of the base network."""
        return cast(list[nn.Module], cast(Any, self.base).stage_modules())


class SplitEncoder(nn.Module):
    """Two networks that share nothing: one sees L, the other ab; features side by side.

    Args:
        halves: the encoders of "lightness" and of "ab", of the same architecture.

    Source:
        Zhang et al. 2017, arXiv:1611.09842, section 3.1.
    """

    def __init__(self, halves: list[ChannelEncoder]) -> None:
        super().__init__()
        self.halves = nn.ModuleList(halves)
        self.dim = sum(half.dim for half in halves)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, dim]."""
        return torch.cat([half(x) for half in self.halves], 1)

    def called_parts(self) -> list[nn.Module]:
        """The halves, which the method also calls one by one."""
        return list(self.halves)

    def checkpoint_blocks(self) -> list[nn.Module]:
        """Those of both halves."""
        return [block for half in self.halves for block in checkpoint_blocks(half)]

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """The halves' maps of each block, their channels side by side."""
        maps = (cast(ChannelEncoder, half).feature_maps(x) for half in self.halves)
        return [torch.cat(pair, 1) for pair in zip(*maps, strict=True)]

    def stage_modules(self) -> list[nn.Module]:
        """The halves' blocks, two and two."""
        blocks = (cast(ChannelEncoder, half).stage_modules() for half in self.halves)
        return [nn.ModuleList(pair) for pair in zip(*blocks, strict=True)]


def build_colour_encoder(
    build: Callable[..., nn.Module],
    inputs: str,
    channels: int,
    image_size: int,
    options: Mapping[str, Any],
) -> nn.Module:
    """An encoder of the channels `inputs`; "split" builds two of half the width.

    Args:
        build: builds the network: (channels, image_size, **options).
        inputs: "lightness", "ab" or "split".
        channels: of the images, which must have colour.
        image_size: shorter side in pixels.
        options: of `build`.

    Raises:
        ValueError: unknown `inputs`, grey images, or a width that has no half.
    """
    if inputs not in INPUTS:
        raise ValueError(
            f"build_encoder: inputs must be one of {', '.join(INPUTS)}, got {inputs!r}"
        )
    if channels != 3:
        raise ValueError(
            f"build_encoder: inputs={inputs!r} needs images of 3 channels, got {channels}"
        )
    if inputs == "split":
        width = options.get("width", inspect.signature(build).parameters["width"].default)
        if width % 2:
            raise ValueError(f"build_encoder: inputs='split' needs an even width, got {width}")
        half = {**options, "width": width // 2}
        return SplitEncoder(
            [
                ChannelEncoder(build(1, image_size, **half), "lightness"),
                ChannelEncoder(build(2, image_size, **half), "ab"),
            ]
        )
    return ChannelEncoder(build(1 if inputs == "lightness" else 2, image_size, **options), inputs)
