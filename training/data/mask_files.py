"""Masks of objects as people save them: with a palette, in grey, black and white.

| file | meaning |
|---|---|
| palette, or one bit | the value is the number of the object, 0 is none |
| grey, nowhere above 127 in a video | the same |
| grey, else | one object where it is above 127 |
| RGB whose channels are equal, 16 bits | as grey, where the values fit |

Anything else does not say which object is where, and is refused.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslops._names import shown
from sslops.training.data.pictures import open_picture

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Mask", "object_numbers", "read_mask"]

BRIGHT = 128
LOSSY = frozenset({".jpeg", ".jpg", ".webp"})
NOISE = 32  # by which such files may miss a value


class Mask(NamedTuple):
    """One file.

    Attributes:
        values: [H, W], cut and resized as its frame.
        numbers: whether they are numbers of objects already.
        largest: value in the file.
        levels: values of flat areas; the edges of smooth masks have none.
        file: it came from.
    """

    values: NDArray[np.uint8]
    numbers: bool
    largest: int
    levels: frozenset[int]
    file: Path


def read_mask(file: Path, box: tuple[int, int] | None) -> Mask:
    """The mask in a file.

    Args:
        file: of any mode.
        box: width and height to cut and resize to, by the nearest pixel: anything smoother would
            make up objects.

    Raises:
        ValueError: no picture, or colours and transparency that name no object.
    """
    from PIL import Image, ImageOps

    image = open_picture(file, file, "video: every mask must be readable")
    lossy = file.suffix.lower() in LOSSY
    values = _one_channel(image, file, lossy)
    largest, levels = int(values.max()), _levels(values, lossy)
    if box is not None:
        values = np.asarray(ImageOps.fit(Image.fromarray(values), box, Image.Resampling.NEAREST))
    return Mask(values, image.mode in ("P", "PA", "1"), largest, levels, file)


def object_numbers(masks: Sequence[Mask]) -> list[NDArray[np.uint8]]:
    """[H, W] each: the number of the object at each pixel, from all masks of one video.

    They are looked at together, as a frame may show an object's rim alone.

    Raises:
        ValueError: grey masks of several levels that are no numbers.
    """
    grey = [mask for mask in masks if not mask.numbers]
    if max((mask.largest for mask in grey), default=0) < BRIGHT:
        return [mask.values for mask in masks]
    levels = frozenset().union(*(mask.levels for mask in grey))
    if len(levels) > 1 or min(levels, default=BRIGHT) < BRIGHT:
        file = next((m.file for m in grey if m.levels - {255}), grey[0].file)
        raise ValueError(
            "video: a grey mask must be 0 and 255, or hold the numbers of objects (below"
            f" {BRIGHT}), got areas of {shown(sorted(levels), ', ')} in masks such as"
            f" {file}; save the numbers with a palette"
        )
    return [
        mask.values if mask.numbers else (mask.values >= BRIGHT).astype(np.uint8) for mask in masks
    ]


def _one_channel(image: "Image.Image", file: Path, lossy: bool) -> NDArray[np.uint8]:
    """[H, W]."""
    values = np.asarray(image)
    problem = None
    if image.mode in ("LA", "PA", "RGBA"):
        if (values[..., -1] != 255).any():
            problem = "transparency"
        values = values[..., :-1]
    if values.ndim == 3 and values.shape[2] == 3 and image.mode in ("RGB", "RGBA"):
        spread = int((values.max(2) - values.min(2)).max())
        if spread > (NOISE if lossy else 0):
            problem = "colours"
    elif image.mode not in ("1", "L", "LA", "P", "PA", "I") and not image.mode.startswith("I;16"):
        problem = f"mode {image.mode}"
    values = values[..., 0] if values.ndim == 3 else values
    if values.dtype != np.uint8 and problem is None:
        if not ((values == 0) | (values == 65535)).all():
            low, high = int(values.min()), int(values.max())
            problem = None if 0 <= low and high <= 255 else f"values from {low} to {high}"
        else:
            values = values.astype(np.int64) // 257  # of a 16-bit black and white
    if problem is not None:
        raise ValueError(
            f"video: a mask must have a palette or be grey with 8 bits, got {problem} in {file}"
        )
    return values.astype(np.uint8)


def _levels(values: NDArray[np.uint8], lossy: bool) -> frozenset[int]:
    """What 3 x 3 pixels or more have in common, but 0; what may be noise counts as 0 or 255."""
    H, W = values.shape
    middle = values[1:-1, 1:-1]
    flat = middle > 0
    for y in range(3):
        for x in range(3):
            flat &= values[y : H - 2 + y, x : W - 2 + x] == middle
    low, high = (NOISE, 255 - NOISE) if lossy else (1, 250)
    found = (int(value) for value in np.unique(middle[flat]))
    return frozenset(255 if value >= high else value for value in found if value >= low)
