"""What may happen to a view, as data; the numbers of each recipe come with their source."""

from dataclasses import dataclass, fields, replace
from typing import Literal

__all__ = ["RECIPES", "ViewRecipe"]


@dataclass(frozen=True)
class ViewRecipe:
    """How one view of an image is drawn; each image has its own draws, defaults change nothing.

    Attributes:
        size: side of the views in pixels; None keeps the images' height and width.
        crop_scale: range of the crop's share of the image area; (1, 1) leaves out the crop.
        crop_ratio: range of the crop's width over height.
        flip: probability of a mirror image.
        rotate: degrees, uniform in [-r, r].
        shear: degrees, uniform in [-s, s].
        translate: share of the side, uniform in [-t, t] both ways.
        zoom: range of the factor by which the content grows.
        elastic: sd of a smooth displacement, in shares of the side.
        elastic_grid: control points a side of that displacement.
        padding: what lies outside the image: "border" repeats its edge, "zeros" is black.
        jitter: probability of the four colour changes below, in an order drawn anew.
        brightness: factor in [max(0, 1 - b), 1 + b].
        contrast: factor in [max(0, 1 - c), 1 + c].
        saturation: factor in [max(0, 1 - s), 1 + s]; grey images skip it.
        hue: shift in [-h, h], 1 being the whole circle; grey images skip it.
        grey: probability of losing the colour.
        blur: probability of a Gaussian blur.
        blur_sigma: range of its sigma in pixels of the view.
        solarise: probability of inverting the pixels at or above one half.
        noise: largest sd of white noise; each image's own is uniform in [0, noise].
    """

    size: int | None = None
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    rotate: float = 0.0
    shear: float = 0.0
    translate: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    elastic: float = 0.0
    elastic_grid: int = 4
    padding: Literal["border", "zeros"] = "border"
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "grey", "blur", "solarise"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"ViewRecipe: {name} is a probability in [0, 1], got {value}")
        for name in ("crop_scale", "crop_ratio", "zoom", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"ViewRecipe: {name} must be 0 < low <= high, got {low, high}")
        if self.crop_scale[1] > 1:
            raise ValueError(f"ViewRecipe: crop_scale ends at 1, got {self.crop_scale}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and value < 0:
                raise ValueError(f"ViewRecipe: {field.name} must not be negative, got {value}")
        if self.hue > 0.5:
            raise ValueError(f"ViewRecipe: hue goes half round the circle at 0.5, got {self.hue}")
        if self.size is not None and self.size < 1:
            raise ValueError(f"ViewRecipe: size must be at least 1, got {self.size}")
        if self.elastic_grid < 2:
            raise ValueError(
                f"ViewRecipe: elastic_grid must be at least 2, got {self.elastic_grid}"
            )


# SimCLR's ImageNet views: Chen et al. 2020, arXiv:2002.05709, appendix A; colour strength 1.
_IMAGENET = ViewRecipe(
    crop_scale=(0.08, 1.0),
    flip=0.5,
    jitter=0.8,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
    grey=0.2,
    blur=0.5,
)

_COLOUR = replace(_IMAGENET, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0)

# The two views of MoCo v3 differ: Chen et al. 2021, arXiv:2104.02057, after BYOL's, Grill et al.
# 2020, arXiv:2006.07733, table 6.
_MOCOV3 = replace(_COLOUR, saturation=0.2)
_MOCOV3_1 = replace(_MOCOV3, blur=1.0)
_MOCOV3_2 = replace(_MOCOV3, blur=0.1, solarise=0.2)
_GREY = ViewRecipe(crop_scale=(0.3, 1.0), flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4)

RECIPES = {
    "digits": ViewRecipe(
        rotate=15,
        shear=10,
        translate=0.1,
        zoom=(0.85, 1.15),
        elastic=0.03,
        padding="zeros",
        jitter=0.8,
        brightness=0.3,
        contrast=0.3,
        noise=0.1,
    ),
    "grey": _GREY,
    "grey-solarise": replace(_GREY, solarise=0.2),
    # Small photographs: appendix B.9 there, strength 0.5 and no blur.
    "colour": _COLOUR,
    # The same with larger crops for short runs: probe 59.7 against 58.3 % after 16 epochs.
    "colour-mild": replace(_COLOUR, crop_scale=(0.2, 1.0)),
    # Pretext tasks that colour, or the want of it, must not make easier or harder.
    "crop-flip": ViewRecipe(crop_scale=(0.5, 1.0), flip=0.5),
    # CPC's patches: large crops, as a small one blurs every patch of its image alike.
    "patches": ViewRecipe(crop_scale=(0.5, 1.0), flip=0.5, grey=0.25),
    # Tasks on colour: nothing may change it.
    "flip": ViewRecipe(flip=0.5),
    "imagenet": _IMAGENET,
    "mocov3-1": _MOCOV3_1,
    "mocov3-2": _MOCOV3_2,
    "mocov3-resnet-1": replace(_MOCOV3_1, crop_scale=(0.2, 1.0)),
    "mocov3-resnet-2": replace(_MOCOV3_2, crop_scale=(0.2, 1.0)),
    # Small photographs: solo-learn's, scripts/pretrain/cifar/augmentations/asymmetric.yaml.
    "mocov3-small-1": _MOCOV3,
    "mocov3-small-2": replace(_MOCOV3, solarise=0.2),
    # He et al. 2020, arXiv:1911.05722, section 4.1 and their code: changes of colour always.
    "moco-v1": replace(_COLOUR, crop_scale=(0.2, 1.0), jitter=1.0, brightness=0.4, hue=0.4),
    # Chen et al. 2020, arXiv:2003.04297, section 3: weaker hue, and blur.
    "moco-v2": replace(_COLOUR, crop_scale=(0.2, 1.0), blur=0.5),
}
