"""torch.cat and torch.stack of floating tensors, as they are under autocast too."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sslops.ops._checks import autocasts

__all__ = ["cat", "stack"]


def cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """torch.cat in the widest dtype of the parts: on a CPU autocast refuses to join some dtypes."""
    return _joined(torch.cat, parts, dim)


def stack(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """torch.stack in the widest dtype of the parts, see `cat`."""
    return _joined(torch.stack, parts, dim)


def _joined(join: Callable[..., Tensor], parts: Sequence[Tensor], dim: int) -> Tensor:
    if not autocasts(parts[0]):
        return join(list(parts), dim=dim)
    with torch.autocast(parts[0].device.type, enabled=False):
        return join(list(parts), dim=dim)
