"""Charts of what a method has learnt, as plain data that the run keeps and the report draws."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Chart", "histogram"]

KINDS = ("lines", "bars", "points")


@dataclass(frozen=True)
class Chart:
    """One pair of axes.

    Attributes:
        kind: "lines" joins the points of each series; "bars" draws the outline of a histogram,
            whose points are the left end and the height of each bar; "points" scatters them.
        series: name -> points (x, y).
        x_label: under the axis; not of "points".
        y_label: inside at the top; not of "points".
        caption: sentences below.

    Raises:
        ValueError: unknown kind, no point, or one that is not finite.
    """

    kind: Literal["lines", "bars", "points"]
    series: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str = ""
    y_label: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Chart: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not self.series or not all(self.series.values()):
            raise ValueError("Chart: every series must have a point, got none")
        if not all(math.isfinite(x) and math.isfinite(y)
                   for points in self.series.values() for x, y in points):  # fmt: skip
            raise ValueError("Chart: all points must be finite, got one that is not")


def histogram(values: Tensor, low: float, high: float, bins: int = 40) -> list[tuple[float, float]]:
    """Left end and share of all `values` of each of `bins` equal bars over [low, high]."""
    values = values.detach().float().cpu().clamp(low, high)
    counts = torch.histc(values, bins, low, high) / max(1, values.numel())
    width = (high - low) / bins
    return [(low + i * width, share) for i, share in enumerate(counts.tolist())]
