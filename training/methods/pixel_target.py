"""What colour methods predict of every pixel, and what a pixel by itself would tell."""

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sslops.distributed import world_size
from sslops.training.augment.colour_bins import annealed_mean, rebalancing, soft_encode

__all__ = ["PixelTarget"]

UNIT = 1 << 16  # shares are added up as whole numbers: the order of adding does not matter
SMOOTHING = 10.0  # pixels of the marginal that every row of the table begins with


class PixelTarget(nn.Module):
    """Values of pixels as soft classes, or as they are; the loss; and the predictors to beat.

    While it is trained it counts, for every value of a hint that a pixel has by itself, what the
    pixels are like: the best prediction from the hint alone is the mean of its row.

    Args:
        bins: centres of the classes, [Q, d], of values of d channels.
        kind: "classes" for cross-entropy, "regression" for squared error over the variance.
        neighbours: classes that share a pixel.
        hints: number of values of the hint.
        rebalance: weigh the gradient of a pixel by the rareness of its nearest class.

    Attributes:
        outputs: channels of a prediction.
        chance: the loss of a prediction that is the same everywhere: of the uniform distribution,
            or of the mean.
    """

    bins: Tensor
    totals: Tensor
    counts: Tensor

    def __init__(
        self,
        bins: Tensor,
        *,
        kind: Literal["classes", "regression"],
        hints: int,
        neighbours: int = 1,
        rebalance: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.neighbours = kind, neighbours
        self.rebalance = rebalance and kind == "classes"
        self.outputs = bins.shape[0 if kind == "classes" else 1]
        self.chance = math.log(self.outputs) if kind == "classes" else 1.0
        self.register_buffer("bins", bins, persistent=False)
        self.register_buffer("totals", torch.zeros(hints, self.outputs, dtype=torch.int64))
        self.register_buffer("counts", torch.zeros(hints, dtype=torch.int64))

    def forward(
        self, prediction: Tensor, values: Tensor, hint: Tensor, chosen: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss, and the accuracy of classes.

        With weights, the gradient is that of the weighted loss; what is reported is the loss
        without them, which may be compared with other predictors'.

        Args:
            prediction: [B, outputs, h, w].
            values: [B, d, h, w].
            hint: [B, h, w] int64.
            chosen: [B] bool, the images that count; all if None.
        """
        prediction = prediction.float()
        counted = torch.ones_like(values[:, 0])  # [B, h, w]
        if chosen is not None:
            counted = counted * chosen[:, None, None]
        index, weight = self._encode(values)
        if self.training:
            self._count(hint, index, weight, counted)
        errors = self._errors(prediction, index, weight)
        pixels = counted.sum().clamp(min=1)
        importance = counted
        if self.rebalance:
            importance = counted * rebalancing(self._prior())[index[..., 0]]
        if self.kind == "regression":
            errors = errors / self._variance(values, counted)
        shown = (counted * errors).sum() / pixels
        pulled = (importance * errors).mean()
        out = {"loss": shown.detach() + (pulled - pulled.detach())}
        if self.kind == "classes":
            hits = (prediction.argmax(1) == index[..., 0]).float()
            out["accuracy"] = (counted * hits).sum() / pixels
        return out

    def decode(self, prediction: Tensor, temperature: float = 0.38) -> Tensor:
        """The values that a prediction stands for: [B, outputs, h, w] -> [B, d, h, w]."""
        if self.kind == "regression":
            return prediction.float()
        return annealed_mean(prediction, self.bins, temperature)

    def scores(
        self, batches: Iterable[tuple[Tensor, Tensor, Tensor, Tensor | None]], hint_name: str
    ) -> dict[str, float]:
        """Mean errors over all pixels: of the predictions and of what they should beat.

        First "cross_entropy", or "squared_error" in the values' own units. "marginal" is that of
        the same prediction everywhere, "best_from_HINT" that of the best prediction from the hint
        alone, both as the training images have them; "entropy" is that of the soft classes, below
        which no cross-entropy goes.

        Args:
            batches: of the arguments of `forward`.
            hint_name: what the hint is.
        """
        name = "cross_entropy" if self.kind == "classes" else "squared_error"
        whole, rows = self._means()
        sums: dict[str, float] = {}
        for prediction, values, hint, chosen in batches:
            index, weight = self._encode(values)
            prediction = prediction.float()
            errors = {
                name: self._errors(prediction, index, weight),
                "marginal": self._table_errors(whole[None], hint * 0, index, weight),
                f"best_from_{hint_name}": self._table_errors(rows, hint, index, weight),
            }
            if self.kind == "classes":
                errors["entropy"] = torch.special.entr(weight).sum(3)
                errors["accuracy"] = (prediction.argmax(1) == index[..., 0]).float()
            if self.rebalance:
                fair = prediction - rebalancing(self._prior()).log()[:, None, None]
                errors[f"{name}_without_weights"] = self._errors(fair, index, weight)
            errors["pixels"] = torch.ones_like(errors[name])
            for key, each in errors.items():
                each = each if chosen is None else each[chosen]
                sums[key] = sums.get(key, 0.0) + each.sum(dtype=torch.float64).item()
        pixels = sums.pop("pixels", 0.0)
        return {key: total / max(pixels, 1.0) for key, total in sums.items()}

    def _encode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of the table that a pixel falls in, and how much: each [B, h, w, k]."""
        if self.kind == "classes":
            return soft_encode(values, self.bins, self.neighbours)
        index = torch.arange(self.outputs, device=values.device)
        values = values.movedim(1, 3)
        return index.expand_as(values), values

    def _errors(self, prediction: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """[B, h, w]."""
        if self.kind == "regression":
            return (prediction.movedim(1, 3) - weight).square().sum(3)
        logs = F.log_softmax(prediction, 1).movedim(1, 3)
        return -(logs.gather(3, index) * weight).sum(3)

    def _table_errors(self, table: Tensor, row: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        """Errors [B, h, w] of the rows of a table [rows, outputs] as predictions."""
        found = table.flatten()[row[..., None] * self.outputs + index]
        if self.kind == "regression":
            return (found - weight).square().sum(3)
        return -(found.log() * weight).sum(3)

    @staticmethod
    def _variance(values: Tensor, counted: Tensor) -> Tensor:
        """Of the counted pixels of the batch, over all channels; at least 1."""
        pixels = counted.sum().clamp(min=1)
        mean = (counted[:, None] * values).sum((0, 2, 3)) / pixels
        spread = (values - mean[:, None, None]).square().sum(1)
        return ((counted * spread).sum() / pixels).clamp(min=1)

    @torch.no_grad()
    def _count(self, hint: Tensor, index: Tensor, weight: Tensor, counted: Tensor) -> None:
        amount = (weight * counted[..., None] * UNIT).round().long()
        cells = (hint[..., None] * self.outputs + index).flatten()
        fresh = torch.zeros_like(self.totals)
        fresh.view(-1).index_add_(0, cells, amount.flatten())
        rows = torch.zeros_like(self.counts)
        rows.index_add_(0, hint.flatten(), counted.long().flatten())
        if world_size() > 1:  # the same weights everywhere
            dist.all_reduce(fresh)
            dist.all_reduce(rows)
        self.totals += fresh
        self.counts += rows

    def _prior(self) -> Tensor:
        """Shares of the classes among the pixels so far, [outputs] float32."""
        totals = self.totals.sum(0)
        return totals / totals.sum().clamp(min=1)

    def _means(self) -> tuple[Tensor, Tensor]:
        """The mean of all pixels [outputs] and that of each hint [hints, outputs]."""
        totals, counts = self.totals.cpu().double() / UNIT, self.counts.cpu().double()
        start = 1 / self.outputs if self.kind == "classes" else 0.0  # of one pixel more
        whole = (totals.sum(0) + start) / (counts.sum() + 1)
        rows = (totals + SMOOTHING * whole) / (counts + SMOOTHING)[:, None]
        device = self.totals.device
        return whole.float().to(device), rows.float().to(device)
