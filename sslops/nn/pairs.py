"""Modules of clip_loss and sigmoid_loss, which learn their scale as in the papers."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sslops.nn._temperature import positive_number
from sslops.ops._checks import check_reduction
from sslops.ops.clip_loss import clip_loss
from sslops.ops.info_nce import InfoNCEStats
from sslops.ops.sigmoid_loss import sigmoid_loss
from sslops.parallel import Group

__all__ = ["ClipLoss", "SigmoidLoss"]


def _log_scale(name: str, scale: float, learn: str, learnt: bool) -> tuple[float, Any]:
    """(the number, its logarithm as a parameter or None)."""
    start = positive_number(name, "scale", scale, learn)
    return start, nn.Parameter(torch.tensor(start).log()) if learnt else None


class ClipLoss(nn.Module):
    r"""Module of `sslops.clip_loss`; formula, shapes, dtypes and errors are documented there.

    Args:
        scale: kappa > 0, the inverse temperature; the start value if it is learnt. Default 1 /
            0.07 as in the paper.
        learn_scale: make it a parameter, held as `log_scale`. Give it no weight decay.
        max_scale: the learnt scale is brought back to this before each step in training mode, as
            in the paper, section 2.5.
        label_smoothing: in [0, 1).
        reduction: "mean", "sum" or "none".
        normalize: False for rows that are unit vectors already.
        return_stats: return (loss, `InfoNCEStats`).
        group: whose rows are compared with as well; None for this process alone.

    Example:
        >>> loss = ClipLoss()
        >>> loss(torch.randn(8, 16), torch.randn(8, 16)).backward()
        >>> loss
        ClipLoss(scale=14.2857, learnt, reduction='mean')
    """

    def __init__(
        self,
        scale: float = 1 / 0.07,
        *,
        learn_scale: bool = True,
        max_scale: float = 100.0,
        label_smoothing: float = 0.0,
        reduction: Literal["none", "mean", "sum"] = "mean",
        normalize: bool = True,
        return_stats: bool = False,
        group: Group = None,
    ) -> None:
        super().__init__()
        self._scale, self.log_scale = _log_scale("ClipLoss", scale, "learn_scale", learn_scale)
        check_reduction("ClipLoss", reduction)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"ClipLoss: label_smoothing must be in [0, 1), got {label_smoothing}")
        if not max_scale >= scale:
            raise ValueError(f"ClipLoss: max_scale must be at least scale, got {max_scale}")
        self.max_scale = max_scale
        self.label_smoothing = label_smoothing
        self.reduction: Literal["none", "mean", "sum"] = reduction
        self.normalize = normalize
        self.return_stats = return_stats
        self.group = group

    @property
    def scale(self) -> float | Tensor:
        """The number, or exp(log_scale) when it is learnt."""
        return self._scale if self.log_scale is None else self.log_scale.exp()

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, InfoNCEStats]:
        """Loss of the pairs image [N, D], text [N, D]; the keywords are those of `clip_loss`."""
        if self.training and self.log_scale is not None:
            with torch.no_grad():  # a clamp in the graph would have no gradient back
                self.log_scale.clamp_(max=math.log(self.max_scale))
        return clip_loss(
            image,
            text,
            self.scale,
            label_smoothing=self.label_smoothing,
            image_ids=image_ids,
            text_ids=text_ids,
            weights=weights,
            reduction=self.reduction,
            normalize=self.normalize,
            return_stats=self.return_stats,
            group=self.group,
        )

    def extra_repr(self) -> str:
        """The hyper-parameters, as `print(model)` shows them."""
        learnt = ", learnt" if self.log_scale is not None else ""
        scale = float(torch.as_tensor(self.scale).detach())
        return f"scale={scale:g}{learnt}, reduction={self.reduction!r}"


class SigmoidLoss(nn.Module):
    r"""Module of `sslops.sigmoid_loss`; formula, shapes, dtypes and errors are documented there.

    Args:
        scale: kappa > 0; the start value if it is learnt. Default 10 as in the paper.
        bias: b; the start value if it is learnt. Default -10: among N^2 pairs of which N match, a
            random model would else start with a large loss.
        learn: make both parameters, `log_scale` and `bias`. Give them no weight decay.
        reduction: "mean" or "sum".
        normalize: False for rows that are unit vectors already.
        group: whose texts are negatives as well; None for this process alone.

    Example:
        >>> loss = SigmoidLoss()
        >>> loss(torch.randn(8, 16), torch.randn(8, 16)).backward()
        >>> loss
        SigmoidLoss(scale=10, bias=-10, learnt, reduction='mean')
    """

    def __init__(
        self,
        scale: float = 10.0,
        bias: float = -10.0,
        *,
        learn: bool = True,
        reduction: Literal["mean", "sum"] = "mean",
        normalize: bool = True,
        group: Group = None,
    ) -> None:
        super().__init__()
        self._scale, self.log_scale = _log_scale("SigmoidLoss", scale, "learn", learn)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"SigmoidLoss: reduction must be mean or sum, got {reduction!r}")
        start = torch.tensor(float(bias))
        self.bias: float | Tensor = nn.Parameter(start) if learn else float(bias)
        self.reduction: Literal["mean", "sum"] = reduction
        self.normalize = normalize
        self.group = group

    @property
    def scale(self) -> float | Tensor:
        """The number, or exp(log_scale) when it is learnt."""
        return self._scale if self.log_scale is None else self.log_scale.exp()

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        *,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
    ) -> Tensor:
        """Loss of image [M, D] and text [N, D], N >= M; ids are those of `sigmoid_loss`."""
        return sigmoid_loss(
            image,
            text,
            self.scale,
            self.bias,
            image_ids=image_ids,
            text_ids=text_ids,
            reduction=self.reduction,
            normalize=self.normalize,
            group=self.group,
        )

    def extra_repr(self) -> str:
        """The hyper-parameters, as `print(model)` shows them."""
        learnt = ", learnt" if self.log_scale is not None else ""
        scale, bias = (float(torch.as_tensor(x).detach()) for x in (self.scale, self.bias))
        return f"scale={scale:g}, bias={bias:g}{learnt}, reduction={self.reduction!r}"
