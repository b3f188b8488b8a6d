"""NT-Xent with known duplicates left out: info_nce's kernels, which mask by ids.

A row's target is its best positive. Its id is that of its sample, so that itself, the other views
and the duplicates of the sample are no negatives; the other positives are added back.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslops._info_nce_args import InfoNCEArgs
from sslops.ops._checks import integer_vector
from sslops.ops._info_nce_op import info_nce_rows


def sample_ids(ids: Tensor, num_views: int, z: Tensor) -> Tensor:
    """Ids [B] of the samples from [B] or [M]; on the CPU the views of one must agree."""
    name, M = "nt_xent", z.shape[0]
    B = M // num_views
    if not isinstance(ids, Tensor) or ids.ndim != 1 or ids.shape[0] != M:
        return integer_vector(name, "ids", ids, B, z)
    by_view = integer_vector(name, "ids", ids, M, z).view(num_views, B)
    if ids.device.type == "cpu" and not torch.compiler.is_compiling():
        apart = int((by_view != by_view[0]).any(dim=0).sum())
        if apart:
            raise ValueError(
                f"{name}: the views of a sample must share their id, got {apart} samples of"
                f" {B} whose ids differ"
            )
    return by_view[0]


def rows_without_duplicates(
    z: Tensor,
    ids: Tensor,
    num_views: int,
    scale: Tensor | None,
    factor: float,
    normalize: bool,
    stats: bool,
    reduced: bool,
    row_weights: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss [M], lse [M], hit [M] or [0]) of `sslops.nt_xent` for samples with ids [B].

    `reduced` and `row_weights` as for `info_nce_rows`.
    """
    M = z.shape[0]
    shift: int | Tensor = M // 2
    if num_views > 2:
        by = factor if scale is None else scale * factor
        positive = positives(z, num_views, normalize) * by
        best = positive.detach().argmax(dim=1)  # [M], which of the V - 1 views after its own
        shift = (best + 1) * (M // num_views)
    targets = (torch.arange(M, device=z.device) + shift) % M
    groups = _groups(ids).repeat(num_views)
    a = InfoNCEArgs(
        z, z, targets=targets, query_ids=groups, key_ids=groups, row_weights=row_weights,
        scale=scale, scale_factor=factor, normalize=normalize, stats=stats,
    )  # fmt: skip
    loss, found = info_nce_rows(a, reduced=reduced and num_views == 2)
    if num_views == 2:
        return loss, found.lse, found.hit
    column = best[:, None]
    above = positive - positive.gather(1, column)  # [M, V - 1], <= 0, and 0 at the target
    # log of (e^loss + the other positives), all over the target's own exponential
    terms = torch.cat([loss[:, None], above.scatter(1, column, float("-inf"))], dim=1)
    total = torch.logsumexp(terms, dim=1)
    lse = found.lse - found.loss + total.detach()
    return total - above.mean(dim=1), lse, found.hit


def positives(z: Tensor, num_views: int, normalize: bool) -> Tensor:
    """Similarities of each row with the same sample's view 1, 2, ... after its own: [M, V - 1]."""
    x = z.to(torch.promote_types(z.dtype, torch.float32))
    x = F.normalize(x, dim=1) if normalize else x
    views = x.view(num_views, -1, x.shape[1])  # [V, B, D]
    after = [(views * views.roll(-n, dims=0)).sum(dim=2) for n in range(1, num_views)]
    return torch.stack(after, dim=2).flatten(0, 1)


def _groups(ids: Tensor) -> Tensor:
    """Numbers from 0 that are equal where ids >= 0 are; a negative id gets one of its own: [B]."""
    ordered, order = ids.sort()
    new = (ordered[1:] != ordered[:-1]) | (ordered[1:] < 0)
    number = F.pad(new.cumsum(dim=0), (1, 0))
    return torch.empty_like(number).scatter_(0, order, number)
