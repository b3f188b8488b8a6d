"""What the references share: unit rows, scales, chunks of rows, the rule that leaves pairs out."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-12  # of torch.nn.functional.normalize
CHUNK = 1 << 24  # logits held at a time


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """float32, or float64 for float64 inputs."""
    return torch.promote_types(tensor.dtype, torch.float32)


def unit_rows(z: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """(rows over max(norm, 1e-12), norms [M, 1]); the rows as they are and ones otherwise.

    Contiguous whatever z is: results that are made like them then have the strides of the fakes.
    """
    x = z.to(compute_dtype(z)).contiguous()
    if not normalize:
        return x, x.new_ones(len(x), 1)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # [M, 1]
    return x / norm.clamp_min(EPS), norm


def through_norm(dx: Tensor, x: Tensor, norm: Tensor, normalize: bool) -> Tensor:
    """Gradient of the rows before they were divided by their norms."""
    if not normalize:
        return dx
    inside = (dx * x).sum(dim=1, keepdim=True) * x
    return (dx - torch.where(norm >= EPS, inside, 0.0)) / norm.clamp_min(EPS)


def effective_scale(x: Tensor, scale: Tensor | None, scale_factor: float) -> Tensor:
    """The product of the two, as a 0-d tensor of x's dtype; NaN where it is not positive."""
    factor = x.new_full((), scale_factor) if scale is None else scale.to(x.dtype) * scale_factor
    return torch.where(factor > 0, factor, float("nan"))


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)); PyTorch's default threshold of 20 is off by 2e-9, too much for float64."""
    return F.softplus(x, threshold=40.0)


def followed(targets: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """(targets, 0 in place of those outside [0, N); which are inside [0, N)), [M] each."""
    inside = (targets >= 0) & (targets < N)
    return torch.where(inside, targets, 0), inside


def chunks(rows: int, columns: int, device: torch.device) -> Iterator[Tensor]:
    """Consecutive row indices, as many at a time as CHUNK allows for `columns` logits each."""
    size = max(1, CHUNK // max(1, columns))
    for start in range(0, rows, size):
        yield torch.arange(start, min(rows, start + size), device=device)


def left_out(
    rows: Tensor, row_ids: Tensor | None, col_ids: Tensor | None, same_id_only: bool
) -> Tensor | None:
    """Pairs that no sum may see, [C, N] bool; None if every pair may be seen.

    Args:
        rows: [C] indices of the rows of this chunk.
        row_ids: [M] int64, or None like `col_ids`; a negative id matches nothing.
        col_ids: [N] int64.
        same_id_only: leave out what does not match instead of what matches.
    """
    if row_ids is None or col_ids is None:
        return None
    same = (row_ids[rows, None] == col_ids) & (row_ids[rows, None] >= 0)
    return ~same if same_id_only else same
