"""torch.cat and torch.stack of floating tensors, as they are under autocast too."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sslops.ops._checks import autocasts

__all__ = ["cat", "stack", "without_autocast"]


def cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """torch.cat in the widest dtype of the parts: on a CPU autocast refuses to join some dtypes."""
    return _joined(torch.cat, parts, dim)


def stack(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """torch.stack in the widest dtype of the parts, see `cat`."""
    return _joined(torch.stack, parts, dim)


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """A context without autocast on the device of `like`; there is none for meta tensors."""
    if not autocasts(like):
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)


def _joined(join: Callable[..., Tensor], parts: Sequence[Tensor], dim: int) -> Tensor:
    with without_autocast(parts[0]):
        return join(list(parts), dim=dim)
