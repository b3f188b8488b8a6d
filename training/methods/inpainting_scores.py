"""How near fills come to the truth inside the holes."""

import math
from collections.abc import Callable, Iterable

from torch import Tensor

from sslops.training.augment.masks import nearest_fill

__all__ = ["FillScores", "score_fills"]


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
