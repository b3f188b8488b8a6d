"""What the methods on colour share: their views, their decoder, and what is left out."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from sslops.training.augment import ViewRecipe
from sslops.training.methods.base import DataShape, find_views
from sslops.training.models.decoder import Decoder

__all__ = ["LIGHTNESS_ROWS", "colour_recipe", "has_colour", "pixel_decoder", "row_of"]

LIGHTNESS_ROWS = 100  # values of L of the best prediction from L alone
GREY = 5.0  # an image none of whose a and b are further from zero has no colour


def colour_recipe(method: str, views: str, shape: DataShape) -> ViewRecipe:
    """The named views.

    Raises:
        ValueError: there are none of that name, or the data set is grey.
    """
    if shape.channels != 3:
        raise ValueError(
            f"{method}: needs colour images of 3 channels, got {shape.channels}: there is no colour"
            " to predict in this data set (--data photos has it)"
        )
    return find_views(method, views)


@torch.no_grad()
def pixel_decoder(
    method: str, encoder: nn.Module, side: int, stride: int, outputs: int, width: int | None
) -> Decoder:
    """A decoder from the encoder's last map to a prediction for every `stride` pixels a side.

    Raises:
        ValueError: no doubling of the map's sides leads there.
    """
    training = encoder.training
    last = cast(Any, encoder.eval()).feature_maps(torch.zeros(1, 3, side, side))[-1]
    encoder.train(training)
    cells = int(last.shape[2])
    strides = [side // (cells << n) for n in range(side) if side % (cells << n) == 0]
    if not strides:
        raise ValueError(
            f"{method}: the encoder's last map must grow to {side} pixels by doubling its sides,"
            f" got one of {cells} x {cells}"
        )
    if stride not in strides:
        raise ValueError(
            f"{method}: stride must be one of {', '.join(map(str, strides))} for images of {side}"
            f" pixels and a last map of {cells} x {cells}, got {stride}"
        )
    return Decoder(last.shape[1], outputs, strides.index(stride), width=width)


def has_colour(ab: Tensor) -> Tensor:
    """Which images have some colour: [B, 2, H, W] -> [B] bool."""
    return ab.abs().amax((1, 2, 3)) > GREY


def row_of(lightness: Tensor) -> Tensor:
    """L [B, 1, H, W] in [0, 100] in whole steps: [B, H, W] int64 below LIGHTNESS_ROWS."""
    return (lightness[:, 0] * (LIGHTNESS_ROWS / 100)).long().clamp(0, LIGHTNESS_ROWS - 1)
