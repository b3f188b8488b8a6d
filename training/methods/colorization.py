"""Colorization: the lightness of a picture should tell its colours.

Zhang et al. 2016, arXiv:1603.08511, sections 2.1 to 2.3:

    for a batch of B images
        L, ab = Lab of the image                                  target
        h = f(L): a map of features                               encoder
        Z = g(h): a distribution over the 313 bins of ab          decoder
        cross-entropy with the 5 nearest bins of each pixel       PixelTarget
        whose gradient counts more where the colour is rare       rebalance
    colours are means of the distributions, sharpened by T = 0.38 pictures
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops.training.augment import make_views
from sslops.training.augment.colour_bins import ab_bins
from sslops.training.augment.lab import lab_to_rgb, lightness, rgb_to_lab
from sslops.training.config import TrainConfig
from sslops.training.methods.base import Batch, DataShape, Method
from sslops.training.methods.colour import (
    LIGHTNESS_ROWS,
    colour_recipe,
    has_colour,
    pixel_decoder,
    row_of,
)
from sslops.training.methods.figures import Chart, histogram
from sslops.training.methods.pixel_target import PixelTarget
from sslops.training.models import build_encoder

__all__ = ["Colorization", "ColorizationConfig"]

TEMPERATURES = (1.0, 0.6, 0.38, 0.1)  # of the pictures
PICTURED = 12


@dataclass(frozen=True)
class ColorizationConfig(TrainConfig):
    """Colorization's own knobs."""

    data: str = "photos"  # a name from `sslops list`, or a folder of images in colour
    views: str = "flip"
    target: Literal["classes", "regression"] = "classes"  # bins of ab, or ab itself
    stride: int = 4  # pixels of the image a side for one of the prediction
    rebalance: bool = True  # rare colours count more in the gradient
    mask_grey: bool = True  # leave out images without colour
    decoder_width: int | None = None  # channels of the decoder

    def encoder_options(self) -> dict[str, Any]:
        """The encoder sees lightness alone."""
        return {**super().encoder_options(), "inputs": "lightness"}


class Colorization(Method):
    """Encoder of L, decoder to distributions over bins of ab, and the loss between.

    Args:
        config: hyper-parameters.
        shape: of the data set, which must have colour.
    """

    mean_loss: ClassVar[bool] = True
    hints: ClassVar[Mapping[str, str]] = {
        "chance": "the learning rate (--lr) and that the images have colour",
        "shortcut": "that the images have more than one colour (--mask-grey leaves out grey ones)",
    }

    def __init__(self, config: ColorizationConfig, shape: DataShape) -> None:
        super().__init__()
        self.recipe = colour_recipe("colorization", config.views, shape)
        self.stride, self.mask_grey = config.stride, config.mask_grey
        self.encoder = build_encoder(
            config.arch, shape.channels, shape.image_size, **config.encoder_options()
        )
        self.target = PixelTarget(
            ab_bins(),
            kind=config.target,
            hints=LIGHTNESS_ROWS,
            neighbours=5,
            rebalance=config.rebalance,
        )
        self.decoder = pixel_decoder(
            "colorization", self.encoder, self.recipe.size or shape.image_size, config.stride,
            self.target.outputs, config.decoder_width,
        )  # fmt: skip
        self.chance = self.target.chance

    def views(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """One view of each image, [1, B, 3, H, W]."""
        return make_views(batch.images, self.recipe, 1, generator)

    def asked(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Colours at the stride of the prediction: ab, the row of L, and the images that count."""
        lab = rgb_to_lab(F.avg_pool2d(images, self.stride))
        ab = lab[:, 1:]
        chosen = has_colour(ab) if self.mask_grey else None
        return ab, row_of(lab[:, :1]), chosen

    def step(self, views: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of the colours of all pixels, or the share of their variance missed."""
        maps = cast(Any, self.encoder).feature_maps(views[0])[-1]
        out = self.target(self.decoder(maps), *self.asked(views[0]))
        return {**out, "features": maps.detach().mean((2, 3))}

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch], generator: torch.Generator) -> dict[str, float]:
        """Cross-entropy or squared error in ab, beside the best predictor from L alone."""

        def each() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
            for batch in batches:
                images = self.views(batch, generator)[0]
                yield self.predict(images), *self.asked(images)

        return self.target.scores(each(), "lightness")

    def predict(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, outputs, H / stride, W / stride]."""
        maps = cast(Any, self.encoder).feature_maps(images)
        return cast(Tensor, self.decoder(maps[-1]))

    def paint(self, images: Tensor, ab: Tensor) -> Tensor:
        """The images in RGB with their own lightness and the colours `ab` [B, 2, h, w]."""
        fine = F.interpolate(ab, images.shape[2:], mode="bilinear", align_corners=False)
        return lab_to_rgb(torch.cat([lightness(images), fine], 1)).clamp(0, 1)

    def pictures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """The images, what the encoder sees, and the colours asked for: [3, B, 3, H, W]."""
        images = self.views(batch, generator)[0]
        ab = self.asked(images)[0]
        rows = [images, self.paint(images, 0 * ab), self.paint(images, ab)]
        return {"image-lightness-colours-asked-for": torch.stack(rows)}

    def figures(self, batch: Batch, generator: torch.Generator) -> dict[str, Chart | Tensor]:
        """Grey, coloured at several temperatures, true; and how colourful they are."""
        images = batch.images.float().div(255)
        prediction, ab = self.predict(images), self.asked(images)[0]
        if self.target.kind == "regression":
            painted = {"predicted": self.target.decode(prediction)}
        else:
            painted = {f"T={T:g}": self.target.decode(prediction, T) for T in TEMPERATURES}
        chosen = slice(None, None, max(1, len(images) // PICTURED))  # of all classes
        some = images[chosen][:PICTURED]
        rows = [self.paint(some, each[chosen][:PICTURED]) for each in (0 * ab, *painted.values())]
        chroma = {"true": ab, **painted}
        name = "-".join(["grey", *painted, "true"])
        return {
            name: torch.stack([*rows, some]),
            "colourfulness": Chart(
                "lines",
                {name: histogram(each.norm(dim=1), 0, 60) for name, each in chroma.items()},
                x_label="distance from grey in ab",
                y_label="share of pixels",
                caption="T=1 is the mean of each distribution, duller than the truth; a low T goes"
                " to its mode, which is grey more often than not unless rare colours weigh more"
                " (--rebalance).",
            ),
        }
