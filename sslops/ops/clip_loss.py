"""CLIP's loss: both directions of InfoNCE with a learnt scale."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops.ops._checks import (
    autocast_dtype,
    check_reduction,
    check_rows,
    check_same_dtype,
    integer_vector,
    plain_scale,
    reduce_rows,
    row_weights,
)
from sslops.ops.info_nce import InfoNCEStats, rows_of_info_nce

__all__ = ["clip_loss"]


def clip_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    *,
    label_smoothing: float = 0.0,
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
    normalize: bool = True,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    r"""CLIP's loss, without ever storing the N x N logits.

    $$ L = \frac{1}{2N} \sum_i \Big( \log \sum_j e^{s_{ij} - s_{ii}}
       + \log \sum_j e^{s_{ji} - s_{ii}} \Big),
       \qquad s_{ij} = \kappa \langle x_i, t_j \rangle $$

    Both directions come from one pass over the tiles of s. Same numbers and gradients as
    open_clip's ClipLoss in one process. Memory is O(N D).

    Args:
        image: [N, D] float16, bfloat16, float32 or float64, any strides. Under autocast, float32
            is cast as for a matrix product; all sums stay in float32.
        text: [N, D], same dtype; row i belongs to image i.
        logit_scale: kappa > 0, the inverse temperature: a number or a tensor of one element,
            which then gets a gradient. CLIP learns its logarithm: pass `log_scale.exp()`.
        label_smoothing: in [0, 1), share of the target that is spread over all N candidates.
        image_ids: [N] integers; together with `text_ids`. A negative pair of equal ids is left
            out (known duplicates); not with label smoothing. -1 never matches.
        text_ids: [N] integers.
        weights: [N], multiplies each pair's loss; gradients flow into it. "mean" then divides by
            the sum of the weights.
        reduction: "mean" or "sum" over the pairs, or "none".
        normalize: False if the rows are unit vectors already, as open_clip's models return them.
        return_stats: also return `InfoNCEStats`, images as queries, texts as keys; its losses are
            those without label smoothing.

    Returns:
        float32 scalar, or [N] for "none" (float64 for float64 inputs); with `return_stats` the
        pair (loss, InfoNCEStats).

    Raises:
        TypeError: a tensor is not of a dtype listed above; image and text differ in dtype.
        ValueError: wrong shape, different numbers of images and texts, tensors on different
            devices, one of the two ids without the other or with label smoothing, scale not
            positive and finite, label smoothing outside [0, 1), unknown reduction.
        RuntimeError: when the gradient is itself differentiated.

    Source:
        Radford et al. 2021, arXiv:2103.00020, figure 3.

    Example:
        >>> image, text = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
        >>> log_scale = torch.tensor(1 / 0.07).log().requires_grad_()
        >>> clip_loss(image, text, log_scale.exp()).backward()
        >>> image.grad.shape, log_scale.grad.shape
        (torch.Size([8, 16]), torch.Size([]))
    """
    name = "clip_loss"
    check_reduction(name, reduction)
    check_rows(name, image=image, text=text)
    check_same_dtype(name, image=image, text=text)
    N = image.shape[0]
    if text.shape[0] != N:
        raise ValueError(f"{name}: every image needs one text, got {N} and {text.shape[0]}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{name}: label_smoothing must be in [0, 1), got {label_smoothing}")
    scale, factor = plain_scale(name, "logit_scale", logit_scale, image)
    if (image_ids is None) != (text_ids is None):
        raise ValueError(f"{name}: image_ids and text_ids go together, got one without the other")
    if image_ids is not None:
        if label_smoothing:
            raise ValueError(
                f"{name}: label smoothing spreads over all candidates, got ids that leave some out"
            )
        image_ids = integer_vector(name, "image_ids", image_ids, N, image)
        text_ids = integer_vector(name, "text_ids", text_ids, N, image)
    if weights is not None:
        weights = row_weights(name, weights, N, image)

    image, text = image.to(autocast_dtype(image)), text.to(autocast_dtype(text))
    rows, stats = rows_of_info_nce(
        image, text, None, None, image_ids, text_ids, scale, factor,
        symmetric=True, normalize=normalize, stats=return_stats,
    )  # fmt: skip
    if label_smoothing:
        kappa = factor if scale is None else scale * factor
        rows = rows + label_smoothing * kappa * _above_mean(image, text, normalize)
    loss = reduce_rows(rows, weights, reduction)
    return (loss, stats) if return_stats else loss


def _above_mean(image: Tensor, text: Tensor, normalize: bool) -> Tensor:
    """<x_i, t_i> less the means of its row and column of <x, t>, halved: [N]; O(N D)."""
    dtype = torch.promote_types(image.dtype, torch.float32)
    x, t = (
        F.normalize(each.to(dtype), dim=1) if normalize else each.to(dtype)
        for each in (image, text)
    )
    return (x * t - 0.5 * (x * t.mean(dim=0) + t * x.mean(dim=0))).sum(dim=1)
