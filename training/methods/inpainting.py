"""Inpainting (Context Encoder): fill a hole from what lies around it.

Pathak et al. 2016, arXiv:1604.07379, section 3:

    for a batch of B images x, holes M
        F(x) = decoder(encoder(x with the hole filled by a constant))
        L_rec: squared error inside the hole, ten times as much on the rim around it
        D's loss: tell x from F(x), which is detached               two optimisers' groups,
        L_adv: -log D(F(x)), D's weights held fixed                 one backward pass
        .999 L_rec + .001 L_adv

Pixels are in [-1, 1] in all losses, as in the paper's code. The constant is the mean of the
channels that encoders subtract anyway (near those of most photographs), so that a hole is zero
after standardisation. For features holes are of random form: in the middle of every image they
teach one position only.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from sslops.training.augment import Draw, make_views
from sslops.training.augment.masks import centre_hole, nearest_fill, random_regions, rim
from sslops.training.augment.statistics import MEAN, STD
from sslops.training.config import TrainConfig
from sslops.training.config.checks import at_least, positive, within
from sslops.training.methods.base import Batch, DataShape, Method, find_views
from sslops.training.methods.figures import Chart
from sslops.training.models import build_encoder
from sslops.training.models.decoder import Decoder
from sslops.training.models.discriminator import Discriminator, adversarial_losses

__all__ = ["FillScores", "Inpainting", "InpaintingConfig"]


@dataclass(frozen=True)
class InpaintingConfig(TrainConfig):
    """The Context Encoder's own knobs."""

    mask: Literal["random", "centre"] = "random"  # blobs anywhere, or the middle square
    area: float = 0.25  # share of the image in random regions
    cells: int = 4  # a side of the grid that random regions are made from; more: smaller blobs
    decoder_width: int = 64  # channels after its first doubling, halved by each further one
    # Pixels around the hole that are predicted as well; if unset 1 for the centre and 0 for random
    # regions, as the paper's code has it (4 of 128 pixels, and none).
    overlap: int | None = None
    overlap_weight: float = 10.0  # of their squared error
    adversarial: float = 0.001  # weight of the adversarial loss; the rest is the squared error's
    lr_ratio: float = 10.0  # the generator's learning rate (lr) over the discriminator's
    beta1: float = 0.5  # of both optimisers, Adam's first

    guards: ClassVar[Mapping[str, Mapping[str, Any]]] = {"random regions": {"mask": "centre"}}

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "overlap", "overlap_weight")
        at_least(self, 2, "cells")
        at_least(self, 1, "decoder_width")
        within(self, 0, 1, "adversarial")
        positive(self, "lr_ratio")
        if not 0 < self.area < 1:
            raise ValueError(f"config: area must be in (0, 1), got {self.area}")


class Inpainting(Method):
    """Encoder, decoder, and a discriminator unless the adversarial weight is 0.

    Args:
        config: hyper-parameters.
        shape: of the data set.
    """

    fill: Tensor
    mean_loss: ClassVar[bool] = True
    hints: ClassVar[Mapping[str, str]] = {
        "chance": "the learning rate (--lr), that holes leave enough of the image (--area,"
        " pictures/holes.png), and that the adversarial loss does not rule (--adversarial)",
    }

    def __init__(self, config: InpaintingConfig, shape: DataShape) -> None:
        super().__init__()
        self.recipe, self.config = find_views("inpainting", config.views), config
        channels, side = shape.channels, self.recipe.size or shape.image_size
        self.encoder = build_encoder(
            config.arch, channels, shape.image_size, **config.encoder_options()
        )
        with torch.no_grad():  # in eval mode: batch norm must not count it
            self.encoder.eval()
            last = self._maps(torch.zeros(1, channels, side, side))
            self.encoder.train()
        doublings = math.ceil(math.log2(side / last.shape[2]))
        self.decoder = Decoder(last.shape[1], channels, doublings, width=config.decoder_width)
        final = cast(nn.Conv2d, self.decoder.layers[-1])
        with torch.no_grad():  # predictions begin near the mean, not many times too large
            final.weight.mul_(0.1)
            cast(Tensor, final.bias).copy_(2 * torch.tensor(MEAN[channels]) - 1)
        usual = 1 if config.mask == "centre" else 0
        self.overlap = usual if config.overlap is None else config.overlap
        self.discriminator: Discriminator | None = None
        if config.adversarial > 0:
            whole = config.mask == "random"
            self.discriminator = Discriminator(
                channels, side if whole else side // 2 + 2 * self.overlap
            )
        self.register_buffer("fill", torch.tensor(MEAN[channels])[:, None, None])
        self.weight = config.adversarial
        # What the fill itself scores, and a discriminator that does not know.
        variance = sum(std**2 for std in STD[channels]) / channels
        self.chance = (1 - self.weight) * 4 * variance + self.weight * math.log(2)

    def _maps(self, x: Tensor) -> Tensor:
        """Output of the encoder's last block, [B, c, h, w]."""
        return cast(Tensor, cast(Any, self.encoder).feature_maps(x)[-1])

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The generator's learning rate is `lr`, the discriminator's a tenth of it."""
        betas = (self.config.beta1, 0.999)
        groups = [{"module": each, "betas": betas} for each in (self.encoder, self.decoder)]
        if self.discriminator is not None:
            scale = 1 / self.config.lr_ratio
            groups.append({"module": self.discriminator, "lr_scale": scale, "betas": betas})
        return groups

    def views(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One view of each image, [B, C, H, W] in [0, 1], and its hole [B, 1, H, W] bool."""
        x = make_views(batch.images, self.recipe, 1, generator)[0]
        return x, self._holes(x, generator)

    def _holes(self, x: Tensor, generator: torch.Generator) -> Tensor:
        B, _, H, W = x.shape
        if self.config.mask == "centre":
            return centre_hole(B, H, W).to(x.device)
        holes = random_regions(
            Draw(B, generator), H, W, area=self.config.area, cells=self.config.cells
        )
        return holes.to(x.device, non_blocking=True)

    def parts(self, views: tuple[Tensor, Tensor], size: int) -> list[tuple[Tensor, Tensor]]:
        """`size` images and their holes at a time."""
        images, holes = views
        return list(zip(torch.split(images, size), torch.split(holes, size), strict=True))

    def _predict(self, x: Tensor, hole: Tensor) -> Tensor:
        """The whole image in [-1, 1], from what lies outside the hole."""
        H, W = x.shape[2:]
        out = self.decoder(self._maps(torch.where(hole, self.fill, x)))
        return cast(Tensor, out)[:, :, :H, :W].float()

    def _shown(self, picture: Tensor, truth: Tensor, hole: Tensor) -> Tensor:
        """What the discriminator gets: the middle patch, or the picture with its hole filled."""
        if self.config.mask == "random":
            return torch.where(hole, picture, truth)
        (H, W), rest = picture.shape[2:], self.overlap
        rows = slice(H // 4 - rest, H // 4 + H // 2 + rest)
        return picture[:, :, rows, W // 4 - rest : W // 4 + W // 2 + rest]

    def step(self, views: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Both networks' losses at once: neither's gradient reaches the other's weights.

        The value of "loss" is the generator's; the discriminator's adds its gradient alone.
        """
        x, hole = views
        truth, z = 2 * x - 1, self._predict(x, hole)
        weight = hole.float()
        if self.overlap:
            weight = weight + self.config.overlap_weight * rim(hole, self.overlap)
        error = (z - truth).square().mean(1, keepdim=True)  # [B, 1, H, W]
        each = (weight * error).sum((1, 2, 3)) / weight.sum((1, 2, 3))  # [B]
        loss = (1 - self.weight) * each.mean()
        out = {"reconstruction": each.mean().detach()}
        if self.discriminator is not None:
            made, real = (self._shown(each, truth, hole) for each in (z, truth))
            adversarial, own = adversarial_losses(self.discriminator, made, real)
            loss = loss + self.weight * adversarial + (own - own.detach())
            out |= {"adversarial": adversarial.detach(), "discriminator": own.detach()}
        return {"loss": loss, **out}

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch], generator: torch.Generator) -> dict[str, float]:
        """L1 and PSNR inside the holes of whole images, beside three plain fills."""
        images = (batch.images.float().div(255) for batch in batches)
        pairs = ((x, self._holes(x, generator)) for x in images)
        return score_fills(pairs, self._filled, self.fill)

    def _filled(self, x: Tensor, hole: Tensor) -> Tensor:
        """The images with their holes filled by prediction, in [0, 1]."""
        predicted = (self._predict(x, hole) / 2 + 0.5).clamp(0, 1)
        return torch.where(hole, predicted, x)

    def pictures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Views, and below them what the encoder gets: [2, B, C, H, W]."""
        x, hole = self.views(batch, generator)
        return {"holes": torch.stack([x, torch.where(hole, self.fill, x)])}

    def figures(self, batch: Batch, generator: torch.Generator) -> dict[str, Chart | Tensor]:
        """Input, nearest fill, prediction and truth: [4, 12, C, H, W]."""
        # From the first to the last: files are often sorted by class.
        N = len(batch.images)
        x = batch.images[torch.linspace(0, N - 1, min(12, N)).long()].float().div(255)
        hole = self._holes(x, generator)
        rows = [torch.where(hole, self.fill, x), nearest_fill(x, hole), self._filled(x, hole), x]
        return {"from-top-input-nearest-fill-prediction-truth": torch.stack(rows)}


class FillScores:
    """Adds up errors over batches, by the name of the fill.

    L1 is the mean absolute error of pixels in [0, 1]; PSNR is that of the mean squared error over
    all holes, -10 log10(MSE), so that one perfect image does not make it infinite.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float, int]] = {}

    def add(self, name: str, filled: Tensor, truth: Tensor, hole: Tensor) -> None:
        """Errors of `filled` against `truth`, both [B, C, H, W], inside the hole [B, 1, H, W]."""
        error = (filled - truth)[hole.expand_as(truth)].double()
        absolute, square, count = self._sums.get(name, (0.0, 0.0, 0))
        self._sums[name] = (
            absolute + error.abs().sum().item(),
            square + error.square().sum().item(),
            count + error.numel(),
        )

    def result(self) -> dict[str, float]:
        """l1NAME and psnrNAME of every fill."""
        scores = {f"l1{name}": total / n for name, (total, _, n) in self._sums.items()}
        for name, (_, square, n) in self._sums.items():
            scores[f"psnr{name}"] = -10 * math.log10(max(square / n, 1e-12))
        return scores


def score_fills(
    pairs: Iterable[tuple[Tensor, Tensor]],
    filled: Callable[[Tensor, Tensor], Tensor],
    mean: Tensor,
) -> dict[str, float]:
    """Scores of a prediction, and of three fills that know nothing of images.

    Args:
        pairs: images [B, C, H, W] in [0, 1] and their holes [B, 1, H, W].
        filled: the prediction to score, of such a pair.
        mean: [C, 1, 1], one colour for all.

    Returns:
        "l1" and "psnr" of the prediction; with "_mean_fill" added those of `mean`, with
        "_own_mean_fill" of the mean of what is seen of the image, with "_nearest_fill" of the
        nearest pixel that is seen.
    """
    scores = FillScores()
    for x, hole in pairs:
        seen = (~hole).float()
        own = (x * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)
        scores.add("", filled(x, hole), x, hole)
        scores.add("_mean_fill", mean.expand_as(x), x, hole)
        scores.add("_own_mean_fill", own.expand_as(x), x, hole)
        scores.add("_nearest_fill", nearest_fill(x, hole), x, hole)
    return scores.result()
