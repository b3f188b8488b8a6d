"""Labels of the first frame of a video, taken along by features that say which places are alike."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Propagation", "propagate"]

SIMILARITIES = 1 << 22  # kept at a time: 16 MB


class Propagation(NamedTuple):
    """How labels are taken along.

    Attributes:
        top_k: a place copies from the so many most similar places; from all if None.
        radius: and only from places at most so many rows and columns away; from all if None.
        context: frames before that are copied from, beside the first.
        temperature: divisor of the similarities in the weights.
        normalize: compare by cosine instead of the plain product.
    """

    top_k: int | None = 5
    radius: int | None = None
    context: int = 7
    temperature: float = 0.1
    normalize: bool = True


@torch.no_grad()
def propagate(features: Tensor, labels: Tensor, how: Propagation) -> Tensor:
    """Labels of all frames: each place copies those of similar places in the frames before it.

    References are the first frame, whose labels are true, and the last few, whose labels were
    copied. Similarities are computed for some rows of a frame at a time: memory does not grow with
    the square of its size.

    Args:
        features: [T, D, h, w].
        labels: [C, h, w] of the first frame, any numbers.
        how: see `Propagation`.

    Returns:
        [T, C, h, w]; the first is `labels`.

    Raises:
        ValueError: features and labels are not of one size, or a setting is out of range.

    Source:
        Jabri et al. 2020, arXiv:2006.14613, appendix: top-k, a radius, and a context of frames;
        Vondrick et al. 2018, arXiv:1806.09594, section 3.4.
    """
    T, _, h, w = features.shape
    if labels.shape[1:] != (h, w):
        raise ValueError(
            f"propagate: labels must be as large as features, {h} x {w}, got"
            f" {tuple(labels.shape[1:])}"
        )
    if (how.top_k is not None and how.top_k < 1) or not how.temperature > 0 or how.context < 0:
        raise ValueError(f"propagate: needs top_k and temperature above 0, got {how}")
    f = F.normalize(features, dim=1) if how.normalize else features
    out = labels.new_zeros(T, *labels.shape)
    out[0] = labels
    for t in range(1, T):
        references = [0, *range(max(1, t - how.context), t)]
        rows = max(1, SIMILARITIES // (len(references) * h * w * w))
        for top in range(0, h, rows):
            bottom = min(h, top + rows)
            out[t, :, top:bottom] = _copy(
                f[t, :, top:bottom], f[references], out[references], top, how
            )
    return out


def _copy(queries: Tensor, keys: Tensor, values: Tensor, top: int, how: Propagation) -> Tensor:
    """Labels [C, n, w] of the rows that begin at `top`.

    Args:
        queries: [D, n, w], features of these rows.
        keys: [R, D, h, w].
        values: [R, C, h, w].
        top: number of the first row.
        how: see `Propagation`.
    """
    n, w = queries.shape[1:]
    C, h = values.shape[1:3]
    low, high = 0, h
    if how.radius is not None:  # rows that no query can reach are left out at once
        low, high = max(0, top - how.radius), min(h, top + n + how.radius)
    keys, values = (x[:, :, low:high].permute(1, 0, 2, 3).flatten(1) for x in (keys, values))
    logits = queries.flatten(1).T @ keys / how.temperature  # [n w, R (high - low) w]
    if how.radius is not None:
        far = _far(top, n, low, high, w, how.radius, logits.device)
        logits = logits.view(n * w, -1, (high - low) * w).masked_fill(far[:, None], -torch.inf)
        logits = logits.flatten(1)
    if how.top_k is None or how.top_k >= logits.shape[1]:
        return (values @ logits.softmax(1).T).view(C, n, w)
    best, index = logits.topk(how.top_k, 1)  # [n w, k]
    return (values[:, index] * best.softmax(1)).sum(2).view(C, n, w)


def _far(
    top: int, n: int, low: int, high: int, w: int, radius: int, device: torch.device
) -> Tensor:
    """Which places of rows low..high-1 those of rows top..top+n-1 cannot reach."""
    rows, columns = torch.arange(top, top + n, device=device), torch.arange(w, device=device)
    vertical = (rows[:, None] - torch.arange(low, high, device=device)).abs() > radius
    horizontal = (columns[:, None] - columns).abs() > radius
    either = vertical[:, None, :, None] | horizontal[None, :, None, :]
    return either.reshape(n * w, (high - low) * w)
