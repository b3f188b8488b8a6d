"""CLIP's loss: both directions of InfoNCE with a learnt scale."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops._info_nce_args import InfoNCEArgs
from sslops.ops._checks import (
    as_rows,
    check_number,
    check_reduction,
    check_rows,
    common_dtype,
    integer_vector,
    plain_scale,
    row_weights,
)
from sslops.ops._group import reduce_over, total_of, total_with_grad
from sslops.ops._group_info_nce import rows_of_team
from sslops.ops._info_nce_op import InfoNCEStats, info_nce_rows
from sslops.parallel import Group, Team, checked_by_all, team_of

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
    group: Group = None,
) -> Tensor | tuple[Tensor, InfoNCEStats]:
    r"""CLIP's loss, without storing the N x N logits.

    $$ L = \frac{1}{2N} \sum_i \Big( \log \sum_j e^{s_{ij} - s_{ii}}
       + \log \sum_j e^{s_{ji} - s_{ii}} \Big),
       \qquad s_{ij} = \kappa \langle x_i, t_j \rangle $$

    Both directions come from one pass over the tiles of s. Same numbers and gradients as
    open_clip's ClipLoss in one process. Memory is O(N D); the compiled CPU kernels keep s for
    the gradient where that is no more than both inputs twice, for N up to 4 D.

    Args:
        image: [N, D] float16, bfloat16, float32 or float64, any strides. Under autocast they are
            cast as for a matrix product; all sums stay in float32.
        text: [N, D], same dtype, which under autocast may differ, as for `info_nce`; row i belongs
            to image i.
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
        group: whose images and texts are candidates as well, each rank giving its own pairs:
            `sslops.Gather()`, `sslops.Ring()` or a process group. Ranks may have different numbers
            of pairs, none too; docs/scale.md says what is returned and what it costs. Default:
            this process alone.

    Returns:
        float32 scalar, or [N] for "none" (float64 for float64 inputs); with `return_stats` the
        pair (loss, InfoNCEStats).

    Raises:
        TypeError: a tensor is not of a dtype listed above; image and text differ in dtype
            outside autocast.
        ValueError: wrong shape, different numbers of images and texts, tensors on different
            devices, one of the two ids without the other or with label smoothing, scale not
            positive and finite, label smoothing outside [0, 1), unknown reduction, ranks of
            `group` that differ in more than their rows.
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
    team = team_of(name, group)
    options = (label_smoothing, image_ids, text_ids, weights, reduction)

    def checked() -> _Checked:
        return _check(image, text, logit_scale, *options, 1 if team is None else 0)

    dtype, row_ids, column_ids, scale, factor, w = checked_by_all(team, name, image, checked)
    image, text = (as_rows(each, dtype, normalize) for each in (image, text))
    a = InfoNCEArgs(
        image, text, query_ids=row_ids, key_ids=column_ids, row_weights=w, scale=scale,
        scale_factor=factor, symmetric=True, normalize=normalize, stats=return_stats,
    )  # fmt: skip
    if team is None:
        rows, stats = info_nce_rows(a, reduced=reduction != "none")
    else:
        given: dict[str, float | str] = {"reduction": reduction, "label_smoothing": label_smoothing}
        rows, stats = rows_of_team(team, name, a, given=given)
    if label_smoothing:
        kappa = factor if scale is None else scale * factor
        rows = rows + label_smoothing * kappa * _above_mean(team, image, text, normalize)
    loss = reduce_over(team, rows, w, reduction)
    return (loss, stats) if return_stats else loss


# dtype, image_ids, text_ids, scale, factor, weights
_Checked = tuple[torch.dtype, Tensor | None, Tensor | None, Tensor | None, float, Tensor | None]


def _check(
    image: Tensor,
    text: Tensor,
    logit_scale: float | Tensor,
    label_smoothing: float,
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    weights: Tensor | None,
    reduction: str,
    least: int,
) -> _Checked:
    name = "clip_loss"
    check_reduction(name, reduction)
    check_rows(name, least, image=image, text=text)
    dtype = common_dtype(name, image=image, text=text)
    N = image.shape[0]
    if text.shape[0] != N:
        raise ValueError(f"{name}: every image needs one text, got {N} and {text.shape[0]}")
    check_number(name, "label_smoothing", label_smoothing)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{name}: label_smoothing must be in [0, 1), got {label_smoothing}")
    scale, factor = plain_scale(name, "logit_scale", logit_scale, image, dtype)
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
        weights = row_weights(name, weights, N, image, dtype)
    return dtype, image_ids, text_ids, scale, factor, weights


def _above_mean(team: Team | None, image: Tensor, text: Tensor, normalize: bool) -> Tensor:
    """<x_i, t_i> less the means of its row and column of <x, t>, halved: [N]; O(N D)."""
    dtype = torch.promote_types(image.dtype, torch.float32)
    x, t = (
        F.normalize(each.to(dtype), dim=1) if normalize else each.to(dtype)
        for each in (image, text)
    )
    if team is None:
        mean_x, mean_t = x.mean(dim=0), t.mean(dim=0)
    else:
        count = total_of(team, x.new_full((), len(x)))
        sums = total_with_grad(team, torch.stack([x.sum(dim=0), t.sum(dim=0)]))
        mean_x, mean_t = (sums / count).unbind()
    return (x * t - 0.5 * (x * mean_t + t * mean_x)).sum(dim=1)
