"""What is done to a view, as data."""

from dataclasses import dataclass

__all__ = ["RECIPES", "ViewRecipe"]


@dataclass(frozen=True)
class ViewRecipe:
    """How one view of an image is drawn; every probability is an image's own.

    Attributes:
        size: side of the views in pixels; None keeps the images' height and width.
        crop_scale: range of the crop's share of the image area; (1, 1) leaves out the crop.
        crop_ratio: range of the crop's width over height.
        flip: probability of a mirror image.
        jitter: probability of the four colour changes below.
        brightness: factor in [1 - b, 1 + b].
        contrast: factor in [1 - c, 1 + c].
        saturation: factor in [1 - s, 1 + s]; without effect on grey images.
        hue: shift in [-h, h] of the circle; without effect on grey images.
        grey: probability of losing the colour.
    """

    size: int | None = None
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0


RECIPES = {
    "digits": ViewRecipe(crop_scale=(0.6, 1.0), jitter=0.8, brightness=0.3, contrast=0.3),
    "grey": ViewRecipe(crop_scale=(0.3, 1.0), flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4),
    "colour": ViewRecipe(
        crop_scale=(0.08, 1.0),
        flip=0.5,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        grey=0.2,
    ),
    "imagenet": ViewRecipe(
        crop_scale=(0.08, 1.0),
        flip=0.5,
        jitter=0.8,
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        grey=0.2,
    ),
}
