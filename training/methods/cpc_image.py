"""CPC on images: the rows of patches seen so far should tell which patches come below.

van den Oord et al. 2018, arXiv:1807.03748, section 3.2 and figure 4:

    for a batch of B images
        cut each into overlapping patches, a grid of rows          encoder.grid
        z_rc = g_enc(patch): each patch by itself                  encoder.grid
        c_rc = g_ar(rows up to r): a masked convolution or GRU     context
        W_k c_rc must pick z_(r+k)c among the patches of the batch predictor, cpc_loss

Features of an image are the mean of its patches' z. Colours go on from patch to patch, so some
patches keep one channel of three, as in Henaff et al. 2019, arXiv:1905.09272.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslops import chance, cpc_loss
from sslops.distributed import all_gather_with_grad
from sslops.training.augment import Draw, make_views
from sslops.training.config import TrainConfig
from sslops.training.config.checks import at_least, positive, within
from sslops.training.methods.base import Batch, ContrastiveMethod, DataShape, find_views
from sslops.training.methods.cpc_charts import at_hand, step_charts
from sslops.training.methods.figures import Chart
from sslops.training.models import PatchEncoder, build_encoder
from sslops.training.models.context import RowContext

__all__ = ["CPCImage", "CPCImageConfig"]


@dataclass(frozen=True)
class CPCImageConfig(TrainConfig):
    """CPC's own knobs."""

    archs: ClassVar[tuple[str, ...]] = ("cpc-patches",)
    unread: ClassVar[Mapping[str, str]] = dict.fromkeys(("pool", "depth", "heads"), "")

    arch: str = "cpc-patches"
    patch: int = 8  # side in pixels; patches overlap by half
    context: Literal["conv", "gru"] = "conv"  # masked convolutions, or a GRU down each column
    pred_steps: int = 3  # K, rows below
    skip: int = 1  # rows left out first, as the next one overlaps with what was seen
    drop: float = 0.5  # share of the patches that keep one colour channel, drawn for each
    negatives: Literal["all", "other"] | int = "all"  # patches, as of sslops.cpc_loss
    normalize: bool = False  # compare by cosine; the paper's score is the plain product
    temperature: float | None = None  # the square root of the latents' size if unset

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, 0, 1, "drop")
        at_least(self, 2, "patch")
        at_least(self, 1, "pred_steps")
        at_least(self, 0, "skip")
        positive(self, "temperature")

    def encoder_options(self) -> dict[str, Any]:
        """Options of `PatchEncoder`."""
        options = {"width": self.width, "patch": self.patch}
        return {name: value for name, value in options.items() if value is not None}


class CPCImage(ContrastiveMethod):
    """Encoder of patches, context, one linear predictor a step, and the loss over all steps.

    Args:
        config: hyper-parameters.
        shape: of the data set.
    """

    hints: ClassVar[Mapping[str, str]] = {
        "chance": "the learning rate (--lr), and that patches are large enough to tell apart"
        " (--patch)",
        "shortcut": "that rows which overlap with what was seen are skipped (--skip), and that"
        " patches lose their colours (--drop)",
    }

    def __init__(self, config: CPCImageConfig, shape: DataShape) -> None:
        super().__init__()
        self.recipe = find_views("cpc-image", config.views)
        self.encoder: PatchEncoder = cast(
            PatchEncoder,
            build_encoder(
                config.arch, shape.channels, shape.image_size, **config.encoder_options()
            ),
        )
        side = self.recipe.size or shape.image_size
        rows = self.encoder.cells(side)
        K, self.skip = config.pred_steps, config.skip
        if K + config.skip >= rows:
            raise ValueError(
                f"cpc-image: pred_steps + skip must be below the {rows} rows of patches of {side}"
                f" pixels, got {K} + {config.skip}"
            )
        dim = self.encoder.dim
        self.steps, self.drop = K, config.drop
        self.rows: RowContext = RowContext(dim, kind=config.context)
        self.predictor = nn.Linear(dim, K * dim, bias=False)  # every W_k
        self.negatives = config.negatives
        self.normalize = config.normalize
        self.temperature = dim**0.5 if config.temperature is None else config.temperature
        # A column of an image is a sequence: what lies below.
        columns = config.batch * rows
        self.chance = chance(
            "cpc_loss", batch=columns, length=rows - self.skip, negatives=config.negatives
        )

    def views(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One view of each image, [1, B, C, H, W], and what `PatchEncoder.grid` calls `kept`."""
        x = make_views(batch.images, self.recipe, 1, generator)
        draw = Draw(x.shape[1], generator)
        rows, columns = map(self.encoder.cells, x.shape[3:])
        dropped = draw.uniform(0, 1, rows, columns) < self.drop
        channel = draw.uniform(0, x.shape[2], rows, columns).long()
        return x, torch.where(dropped, channel, -1)[None].to(x.device, non_blocking=True)

    def embed(self, views: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Predictions [B, columns, K, T, D] and targets [B, columns, T, D], T = rows - skip.

        Position t stands for context row t and target row t + skip, so that step k predicts row
        t + skip + k.
        """
        (x,), (kept,) = views
        z = self.encoder.grid(x, kept)  # [B, rows, columns, D]
        c = self.rows(z)
        T = z.shape[1] - self.skip
        predictions = self.predictor(c[:, :T]).unflatten(3, (self.steps, -1))
        return predictions.permute(0, 2, 3, 1, 4), z[:, self.skip :].transpose(1, 2)

    def contrast(self, embeddings: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The loss over all steps; every column of every image is a sequence."""
        predictions, targets = map(all_gather_with_grad, embeddings)
        loss, stats = cpc_loss(
            predictions.flatten(0, 1).transpose(0, 1),
            targets.flatten(0, 1).to(predictions.dtype),
            negatives=self.negatives if self.training else at_hand(self.negatives, targets),
            normalize=self.normalize,
            temperature=self.temperature,
            return_stats=True,
        )
        return {
            "loss": loss,
            "accuracy": stats.accuracy.mean(),
            "accuracy_next": stats.accuracy[0],
            "accuracy_last": stats.accuracy[-1],
        }

    def pictures(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Images, their views, and every other patch of them, those that do not overlap."""
        views, kept = self.views(batch, generator)
        patches = self.encoder.cut(views[0], kept[0])[:, ::2, ::2]
        B, n, m, C, side, _ = patches.shape
        tiled = patches.permute(0, 3, 1, 4, 2, 5).reshape(1, B, C, n * side, m * side)
        room = (views.shape[4] - m * side, views.shape[3] - n * side)
        rows = [views, F.pad(tiled, (0, room[0], 0, room[1]))]
        if views.shape[2:] == batch.images.shape[1:]:
            rows.insert(0, batch.images.float().div(255)[None])
        return {"views": torch.cat(rows)}

    def figures(self, batch: Batch, generator: torch.Generator) -> dict[str, Chart | Tensor]:
        """How well each step is predicted, and which rows each prediction resembles."""
        some = Batch(batch.images[:64], None)
        predictions, targets = self.embed(self.views(some, generator))
        return step_charts(
            predictions.flatten(0, 1).transpose(0, 1),
            targets.flatten(0, 1),
            negatives=self.negatives,
            normalize=self.normalize,
            temperature=self.temperature,
        )
