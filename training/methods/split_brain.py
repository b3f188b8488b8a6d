"""Split-brain autoencoder: each half of the network predicts what the other half sees.

Zhang et al. 2017, arXiv:1611.09842, sections 3.1 and 3.2:

    for a batch of B images
        L, ab = Lab of the image
        Z1 = g1(f1(L)): a distribution over bins of ab            halves[0], decoders[0]
        Z2 = g2(f2(ab)): a distribution over bins of L            halves[1], decoders[1]
        cross-entropy of both; neither half sees its own answer   PixelTarget
    features are f1(L) and f2(ab) side by side                    encoder
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslops.training.augment import make_views
from sslops.training.augment.colour_bins import ab_bins, lightness_bins, soft_encode
from sslops.training.augment.lab import lab_to_rgb, rgb_to_lab
from sslops.training.config import TrainConfig
from sslops.training.config.checks import at_least
from sslops.training.methods.base import Batch, DataShape, Method
from sslops.training.methods.colour import LIGHTNESS_ROWS, colour_recipe, pixel_decoder, row_of
from sslops.training.methods.figures import Chart
from sslops.training.methods.pixel_target import PixelTarget
from sslops.training.models import build_encoder
from sslops.training.models.colour_inputs import ChannelEncoder, SplitEncoder

__all__ = ["SplitBrain", "SplitBrainConfig"]

NAMES = ("ab", "lightness")  # what the halves predict
PICTURED = 12


@dataclass(frozen=True)
class SplitBrainConfig(TrainConfig):
    """Split-brain's own knobs."""

    data: str = "photos"  # a name from `sslops list`, or a folder of images in colour
    views: str = "flip"
    target: Literal["classes", "regression"] = "classes"  # bins of ab and of L, or the values
    lightness_bins: int = 50
    stride: int = 4  # pixels of the image a side for one of the predictions
    decoder_width: int | None = None  # channels of each decoder

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 2, "lightness_bins")

    def encoder_options(self) -> dict[str, Any]:
        """Two encoders of half the width."""
        return {**super().encoder_options(), "inputs": "split"}


class SplitBrain(Method):
    """Two encoders and decoders that share nothing, and the sum of their losses.

    Args:
        config: hyper-parameters.
        shape: of the data set, which must have colour.
    """

    mean_loss: ClassVar[bool] = True
    hints: ClassVar[Mapping[str, str]] = {
        "chance": "the learning rate (--lr) and that the images have colour",
        "shortcut": "that the images have more than one colour",
    }

    def __init__(self, config: SplitBrainConfig, shape: DataShape) -> None:
        super().__init__()
        self.recipe = colour_recipe("split-brain", config.views, shape)
        self.stride = config.stride
        self.encoder: SplitEncoder = cast(
            SplitEncoder,
            build_encoder(
                config.arch, shape.channels, shape.image_size, **config.encoder_options()
            ),
        )
        self.colours = ab_bins()
        self.targets = nn.ModuleList(
            [
                PixelTarget(self.colours, kind=config.target, hints=LIGHTNESS_ROWS),
                PixelTarget(
                    lightness_bins(config.lightness_bins),
                    kind=config.target,
                    hints=len(self.colours),
                ),
            ]
        )
        side = self.recipe.size or shape.image_size
        self.decoders = nn.ModuleList(
            pixel_decoder("split-brain", half, side, config.stride, target.outputs,
                          config.decoder_width)
            for half, target in self._pairs()
        )  # fmt: skip
        self.chance = sum(target.chance for _, target in self._pairs())

    def _pairs(self) -> list[tuple[ChannelEncoder, PixelTarget]]:
        pairs = zip(self.encoder.halves, self.targets, strict=True)
        return cast(list[tuple[ChannelEncoder, PixelTarget]], list(pairs))

    def views(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """One view of each image, [1, B, 3, H, W]."""
        return make_views(batch.images, self.recipe, 1, generator)

    def asked(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What each half has to tell, and what its own pixel would tell by itself."""
        lab = rgb_to_lab(F.avg_pool2d(images, self.stride))
        L, ab = lab[:, :1], lab[:, 1:]
        colour = soft_encode(ab, self.colours.to(ab.device), 1)[0][..., 0]
        return [(ab, row_of(L)), (L, colour)]

    def step(self, views: Tensor) -> dict[str, Tensor]:
        """The halves' losses, added up."""
        out: dict[str, Tensor] = {}
        features = []
        halves = zip(NAMES, self._pairs(), self.decoders, self.asked(views[0]), strict=True)
        for name, (half, target), decoder, (values, hint) in halves:
            maps = half.feature_maps(views[0])[-1]
            features.append(maps.detach().mean((2, 3)))
            for key, value in target(decoder(maps), values, hint).items():
                out[f"{key}_{name}"] = value
        return {"loss": out["loss_ab"] + out["loss_lightness"], **out,
                "features": torch.cat(features, 1)}  # fmt: skip

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch], generator: torch.Generator) -> dict[str, float]:
        """Each half's error, its marginal's, and that of the best prediction pixel by pixel."""
        images = [self.views(batch, generator)[0] for batch in batches]
        scores = {}
        for i, (name, (_, target)) in enumerate(zip(NAMES, self._pairs(), strict=True)):
            rows = ((self.predict(x)[i], *self.asked(x)[i], None) for x in images)
            for key, value in target.scores(rows, NAMES[1 - i]).items():
                scores[f"{name}_{key}"] = value
        return scores

    def predict(self, images: Tensor) -> list[Tensor]:
        """Of ab and of L: [B, outputs, H / stride, W / stride] each."""
        halves = zip(self.encoder.halves, self.decoders, strict=True)
        return [decoder(cast(ChannelEncoder, h).feature_maps(images)[-1]) for h, decoder in halves]

    def figures(self, batch: Batch, generator: torch.Generator) -> dict[str, Chart | Tensor]:
        """What each half sees and what it makes of it, and the truth."""
        spread = batch.images[:: max(1, len(batch.images) // PICTURED)]  # of all classes
        images = spread[:PICTURED].float().div(255)
        lab = rgb_to_lab(images)
        L, ab = lab[:, :1], lab[:, 1:]
        told_ab, told_L = (
            F.interpolate(target.decode(each), images.shape[2:], mode="bilinear")
            for (_, target), each in zip(self._pairs(), self.predict(images), strict=True)
        )
        middle = torch.full_like(L, 60.0)
        rows = [(L, 0 * ab), (L, told_ab), (middle, ab), (told_L, ab), (L, ab)]
        painted = [lab_to_rgb(torch.cat(pair, 1)).clamp(0, 1) for pair in rows]
        return {"lightness-its-colours-colours-their-lightness-true": torch.stack(painted)}
