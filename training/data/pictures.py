"""Picture files of other people: opened in one place, named when they cannot be read.

A picture becomes 8 bits of grey or of RGB. What that takes away from it is remarked; what it would
destroy is refused.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["large_pictures", "open_picture", "resized", "to_8_bits"]

WIDE = ("I", "F")  # modes of more than 8 bits, and those that begin with "I;16"


@contextmanager
def large_pictures() -> Iterator[None]:
    """Decode without a warning of Pillow above 89 megapixels; above 179 it refuses by itself.

    To be entered by the thread that starts those which decode.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def open_picture(
    content: Path | bytes, name: object, rule: str, remarks: list[str] | None = None
) -> "Image.Image":
    """The first picture of a file, decoded and upright.

    Args:
        content: a file, or its bytes.
        name: what to call it in an error.
        rule: what the error says must be: "folder: every image must be readable".
        remarks: what is not kept of the file is appended here.

    Raises:
        ValueError: it cannot be read, or is larger than Pillow reads (179 megapixels).
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as handle:
            deep = any(";16" in str(tile) for tile in handle.tile) and "I" not in handle.mode
            # A photograph with a preview or a gain map is MPO.
            several = handle.format != "MPO" and getattr(handle, "is_animated", False)
            image = ImageOps.exif_transpose(handle)
            image.load()
    except Exception as error:  # damaged files raise whatever their decoder stumbles over
        raise ValueError(f"{rule}, got {name}: {error or type(error).__name__}") from error
    if remarks is not None and deep:
        remarks.append("16 bits a channel, of which 8 are read")
    if remarks is not None and several:
        remarks.append("several frames, of which the first is read")
    return image


def resized(
    sizes: Sequence[tuple[int, int]], box: tuple[int, int], items: str, where: object
) -> list[str]:
    """A line that says from what widths and heights pictures were brought to `box`, if any was."""
    others = sorted((size for size in sizes if size != box), key=lambda size: size[0] * size[1])
    if not others:
        return []
    first, last = ("x".join(map(str, size)) for size in (others[0], others[-1]))
    span = first if first == last else f"{first} to {last}"
    return [f"{where}: {len(others):,} {items} of {span} pixels are cut and resized to"
            f" {box[0]}x{box[1]}"]  # fmt: skip


def to_8_bits(image: "Image.Image", name: object, kind: str, remarks: list[str]) -> "Image.Image":
    """The picture in mode L if it is of mode 1 or L, else in RGB.

    What is transparent lies on white, or on black where all would be white.

    Raises:
        ValueError: its values do not fit into 8 bits, or there is no conversion.
    """
    from PIL import Image

    grey = image.mode in ("1", "L")
    if image.mode in WIDE or image.mode.startswith("I;16"):
        image = _narrow(image, name, kind, remarks)
    try:
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            pixels = np.asarray(image)  # [H, W, 4]
            if (pixels[..., 3] < 255).any():
                for colour in ("white", "black"):
                    ground = Image.new("RGBA", image.size, colour)
                    laid = Image.alpha_composite(ground, image)
                    if (np.asarray(laid) < 255).any():
                        break
                remarks.append(f"transparent parts, which are {colour} now")
                image = laid
        return image.convert("L" if grey else "RGB")
    except Exception as error:
        raise ValueError(
            f"{kind}: every image must have a mode that can be RGB, got {image.mode} in {name}:"
            f" {error}"
        ) from error


def _narrow(image: "Image.Image", name: object, kind: str, remarks: list[str]) -> "Image.Image":
    """One channel of 16 or 32 bits as L: Pillow cuts everything off at 255."""
    from PIL import Image

    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (0 <= low and high <= 255) or (image.mode == "F" and high <= 1):
        raise ValueError(
            f"{kind}: images must have values of 8 bits, got {low:g} to {high:g} (mode"
            f" {image.mode}) in {name}; scale them to 0 .. 255 first"
        )
    whole = np.rint(values)
    if (whole != values).any():
        remarks.append("fractions, which are rounded")
    return Image.fromarray(whole.astype(np.uint8))
