"""How near fills come to the truth inside the holes."""

import math

from torch import Tensor

__all__ = ["FillScores"]


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
